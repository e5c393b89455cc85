"""Serving on CPU against vLLM: who keeps the thresholds at how many requests/s; same checkpoint, threads and arrivals.

    python tests/bench/online.py                    both checkpoints; adds its rows to build/bench/cpu.json
    python tests/bench/online.py --shapes 125m --seconds 60 --threads 1
    python tests/bench/online.py --shapes 1.1b --shorter 8      prompts an eighth as long, of which some rate holds

Poisson arrivals with drawn lengths go through the OpenAI API of each server, whose turn it is while the others idle. A
search on a ladder of rates finds the greatest one at which each server still keeps both 95th percentiles; rungs are the
same for all, and so are the arrivals of a rung. Up to there goodput is what is offered, so at one rate that all can
carry it could never tell them apart: compared is the goodput of each at its own greatest rate, and then what users saw
of both at vLLM's. `same` is no figure of speed but the share of prompts that both continue with the same first words,
which shows that they run the same model.

The generator takes part of a processor, of all contestants alike. Without vLLM, ours is measured alone and no row is
kept.
"""

import argparse
import asyncio
import itertools
import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from checkpoints import SHAPES, checkpoint
from ladder import Search, rate, rung
from results import BUILD, comparison, keep
from servers import VLLM, Settings, capstan, vllm

from capstan_cli import endpoint, generator
from capstan_cli.endpoint import Answer
from capstan_cli.generator import Target
from capstan_cli.measure import ClassSummary, Summary, Thresholds, summarise
from capstan_cli.traffic import Arrival, poisson

TTFT_MS, TPOT_MS = 1000.0, 100.0
"""What the 95th percentiles must keep, and a good request too."""
LOWEST: Final = 0.05
"""Requests/s below which the search ends."""
LENGTHS: Final = ((64, 16), (128, 32), (256, 64), (512, 128))
"""Prompt and output tokens, each of the pairs as often as the others."""
COLUMNS: Final = ("case", "ours", "unit", "peer", "peer_value", "ratio", "same")
_CONCURRENCY: Final = 16
_ANSWER_TIMEOUT_S: Final = 120.0
_NUM_PROBES: Final = 8
_PEER: Final = "vLLM"


class Trial(NamedTuple):
    """One server at one rate."""

    per_s: float
    summary: Summary
    goodput: float
    """Good requests for each second in which requests arrived."""

    @property
    def figures(self) -> ClassSummary:
        return self.summary.classes[0]

    @property
    def held(self) -> bool:
        """Whether every request was completed and both percentiles were kept."""
        ttft, tpot = self.figures.ttft_ms.p95, self.figures.tpot_ms.p95
        complete = self.summary.completed == self.summary.requests
        return complete and (ttft or 0) <= TTFT_MS and (tpot or 0) <= TPOT_MS


def arrivals(per_s: float, seconds: float, seed: int, shorter: int = 1) -> list[Arrival]:
    """Memoryless arrivals of drawn lengths, at least one."""
    draw = random.Random(seed)
    at = poisson(per_s, seconds, 1, 1, seed) or [Arrival(0.0, 1, 1)]
    return [Arrival(arrival.at_s, *drawn(draw, shorter)) for arrival in at]


def drawn(draw: random.Random, shorter: int) -> tuple[int, int]:
    """Tokens of a prompt, which is `shorter` times as short as others', and of its answer."""
    prompt, output = draw.choice(LENGTHS)
    return max(1, prompt // shorter), output


class Contestant:
    """A server that is up."""

    def __init__(self, address: str, shorter: int = 1) -> None:
        self._address, self._shorter = address, shorter
        # No prompt begins like one of another run: what a server has cached of that would be found.
        self._texts = itertools.count()
        self._target: Target | None = None

    async def served_per_s(self, seconds: float) -> float:
        """Requests/s of a burst that is always `_CONCURRENCY` deep: near what it can do at most."""
        draw = random.Random(0)

        def lengths() -> Iterator[Arrival]:
            while True:
                yield Arrival(0.0, *drawn(draw, self._shorter))

        async with endpoint.session(_ANSWER_TIMEOUT_S) as client:
            target = replace(await self._connected(client), seed=next(self._texts))
            outcomes = await generator.saturate(client, target, lengths(), _CONCURRENCY, seconds)
        return summarise(outcomes, {}).requests_per_s

    async def trial(self, number: int, seconds: float, rounds: int) -> Trial:
        """`rounds` runs on one rung, each with arrivals of its own, as one."""
        outcomes = []
        async with endpoint.session(_ANSWER_TIMEOUT_S) as client:
            target = await self._connected(client)
            for turn in range(rounds):
                fresh = replace(target, seed=next(self._texts))
                came = arrivals(rate(number), seconds, turn, self._shorter)
                outcomes += await generator.replay(client, fresh, came)
        summary = summarise(outcomes, {}, Thresholds(TTFT_MS, TPOT_MS))
        return Trial(rate(number), summary, summary.classes[0].good / (seconds * rounds))

    async def beginnings(self) -> list[str]:
        """How it continues a few prompts."""
        async with endpoint.session(_ANSWER_TIMEOUT_S) as client:
            target = await self._connected(client)
            texts = []
            for number in range(_NUM_PROBES):
                answer = Answer()
                body = target.body(target.text(1_000_000 + number, 64), 1)
                async for _ in endpoint.stream(client, target.url, body, {}, answer):
                    pass
                texts.append("".join(answer.text))
        return texts

    async def _connected(self, client: aiohttp.ClientSession) -> Target:
        if self._target is None:
            self._target = await generator.connect(client, self._address, chat=False)
        return self._target


def measure(contestants: Mapping[str, Contestant], shape: str, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Search for each contestant in turn, and yield the comparisons."""
    searches = {}
    for name, contestant in contestants.items():
        # The first burst warms up.
        burst = [asyncio.run(contestant.served_per_s(args.seconds / 4)) for _ in range(2)][1]
        print(f"{shape}: {name} serves {burst:.2f} requests/s at {_CONCURRENCY} at a time", flush=True)
        searches[name] = Search(rung(0.7 * burst), rung(LOWEST))
    trials: dict[str, dict[int, Trial]] = {name: {} for name in contestants}

    def run(name: str, number: int) -> Trial:
        trial = asyncio.run(contestants[name].trial(number, args.seconds, args.rounds))
        trials[name][number] = trial
        print(line(shape, name, trial), flush=True)
        return trial

    while any(search.next is not None for search in searches.values()):
        for name, search in searches.items():
            if search.next is not None:
                # A hiccup of the machine is no limit: only what fails twice has failed.
                search.learn(run(name, search.next).held or run(name, search.next).held)
    yield from compared(shape, contestants, searches, trials, run)


def compared(
    shape: str,
    contestants: Mapping[str, Contestant],
    searches: Mapping[str, Search],
    trials: Mapping[str, Mapping[int, Trial]],
    run: Callable[[str, int], Trial],
) -> Iterator[dict[str, Any]]:
    """Rows against vLLM, if it is there and keeps the thresholds at some rate."""
    best = {name: search.best for name, search in searches.items()}
    for name, number in best.items():
        said = "no rate" if number is None else f"{rate(number):.2f} requests/s"
        print(f"{shape}: {name} keeps TTFT p95 {TTFT_MS:g} ms and TPOT p95 {TPOT_MS:g} ms at {said}")
    ours, theirs = best["ours"], best.get(_PEER)
    if ours is None or theirs is None:
        return
    first, second = (asyncio.run(contestants[name].beginnings()) for name in ("ours", _PEER))
    same = {"same": round(statistics.mean(a == b for a, b in zip(first, second, strict=True)), 2)}
    mine, peer = trials["ours"][ours].goodput, trials[_PEER][theirs].goodput
    yield comparison(f"{shape} bf16 online goodput", mine, "requests/s", _PEER, peer, mine / peer) | same
    at_theirs = trials["ours"].get(theirs) or run("ours", theirs)
    for name, kind in (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms")):
        for percentile in ("p50", "p95"):
            both = [getattr(trial.figures, kind) for trial in (at_theirs, trials[_PEER][theirs])]
            mine, peer = (getattr(spread, percentile) for spread in both)
            case = f"{shape} bf16 online {name} {percentile} at the greatest rate of the peer"
            yield comparison(case, mine, "ms", _PEER, peer, peer / mine) | same


def line(shape: str, name: str, trial: Trial) -> str:
    """One row of the table."""
    spreads = (trial.figures.ttft_ms, trial.figures.tpot_ms)
    values = [value for spread in spreads for value in (spread.p50, spread.p95, spread.p99)]
    cells = [f"{math.nan if value is None else value:10.0f}" for value in values]
    return f"{shape:6}{name:8}{trial.per_s:8.2f}{trial.summary.requests:6}{''.join(cells)}{trial.goodput:9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["tiny", *SHAPES], default=["125m", "tiny"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=12.0, help="of arrivals in one run")
    parser.add_argument("--rounds", type=int, default=1, help="runs at each rate, with other arrivals")
    parser.add_argument("--shorter", type=int, default=1, metavar="N", help="prompts of an N-th of the length")
    parser.add_argument("--max-sequences", type=int, default=32, help="of one step, on every server")
    parser.add_argument("--max-batched-tokens", type=int, default=512, help="of one step, on every server")
    parser.add_argument("--json", type=Path, default=BUILD / "cpu.json")
    args = parser.parse_args()
    servers: dict[str, Callable[[Settings], AbstractContextManager[str]]] = {"ours": capstan}
    missing = VLLM.install()
    if missing:
        print(f"LEFT OUT {_PEER}: {missing}", file=sys.stderr)
    else:
        servers[_PEER] = vllm
    print(f"{args.threads} thread(s) each, {args.rounds} × {args.seconds:g} s a rate; milliseconds\n")
    percentiles = "".join(f"{f'{kind} {p}':>10}" for kind in ("TTFT", "TPOT") for p in ("p50", "p95", "p99"))
    print(f"{'model':6}{'server':8}{'rate/s':>8}{'reqs':>6}{percentiles}{'goodput':>9}")
    rows: list[dict[str, Any]] = []
    for shape in args.shapes:
        longest = max(map(sum, LENGTHS)) + 16
        settings = Settings(
            checkpoint(shape), args.threads, args.max_sequences, args.max_batched_tokens, longest, BUILD / "online"
        )
        with ExitStack() as stack:
            contestants = {
                name: Contestant(stack.enter_context(start(settings)), args.shorter) for name, start in servers.items()
            }
            rows += measure(contestants, shape, args)
    report(rows)
    keep(args.json, rows)


def report(rows: Sequence[Mapping[str, Any]]) -> None:
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for row in rows:
        print(f"| {' | '.join(f'{row[key]}' for key in COLUMNS)} |")


if __name__ == "__main__":
    try:
        main()
    except RuntimeError as error:
        sys.exit(f"online: {error}")
