"""The online bench against a real server, in small; and what it makes of the figures."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from checkpoints import SHIPPED
from ladder import Search, rate
from online import LENGTHS, Contestant, Trial, arrivals, compared
from servers import Settings, capstan, free_port

from capstan_cli.measure import Outcome, Result, Thresholds, summarise


class Told(Contestant):
    """One that is never asked for more than its first tokens."""

    def __init__(self, *tokens: str) -> None:
        super().__init__("http://127.0.0.1:1")
        self._tokens = list(tokens)

    async def beginnings(self) -> list[str]:
        return self._tokens


def trial(number: int, ttfts_s: Sequence[float]) -> Trial:
    """Requests one second apart, of three tokens that come 50 ms apart."""
    outcomes = [
        Outcome(
            index,
            None,
            index,
            index,
            index + ttft + 0.1,
            Result.COMPLETED,
            first_token_s=index + ttft,
            last_token_s=index + ttft + 0.1,
            output_tokens=3,
        )
        for index, ttft in enumerate(ttfts_s)
    ]
    summary = summarise(outcomes, {}, Thresholds(1000, 100))
    return Trial(rate(number), summary, summary.classes[0].good / len(outcomes))


def searched(number: int) -> Search:
    search = Search(number, -40)
    for held in (True, False):
        search.learn(held)
    while search.next is not None:
        search.learn(False)
    return search


def test_goodput_is_compared_at_each_ones_own_limit_and_latency_at_the_peers() -> None:
    asked: list[tuple[str, int]] = []

    def run(name: str, number: int) -> Trial:
        asked.append((name, number))
        return trial(number, [0.2] * 4)

    rows = list(
        compared(
            "125m",
            {"ours": Told("a", "b"), "vLLM": Told("a", "c")},
            {"ours": searched(7), "vLLM": searched(3)},
            {"ours": {7: trial(7, [0.9] * 10)}, "vLLM": {3: trial(3, [0.4, 0.4, 0.4, 2.0])}},
            run,
        )
    )
    assert asked == [("ours", 3)]
    goodput, first, *_, last = rows
    assert (goodput["ours"], goodput["peer_value"], goodput["ratio"]) == (1.0, 0.75, 1.33)
    assert (first["case"], first["ours"], first["peer_value"], first["ratio"]) == (
        "125m bf16 online TTFT p50 at the greatest rate of the peer", 200, 400, 2.0
    )  # fmt: skip
    assert last["ratio"] == 1.0
    assert {row["same"] for row in rows} == {0.5}


def test_without_a_peer_there_is_nothing_to_compare() -> None:
    assert not list(compared("tiny", {"ours": Told()}, {"ours": searched(7)}, {}, lambda _name, _number: trial(0, [1])))


@pytest.mark.parametrize(
    ("ttfts_s", "held"), [([0.2] * 20, True), ([0.2] * 20 + [3.0], True), ([0.2] * 20 + [3.0] * 2, False)]
)
def test_a_rate_holds_while_the_95th_percentile_does(ttfts_s: list[float], held: bool) -> None:
    assert trial(0, ttfts_s).held == held


def test_every_contestant_meets_the_same_arrivals() -> None:
    first, again, other = arrivals(3, 20, seed=1), arrivals(3, 20, seed=1), arrivals(3, 20, seed=2)
    assert first == again != other
    assert {(arrival.prompt_tokens, arrival.output_tokens) for arrival in first} == set(LENGTHS)
    assert len(arrivals(0.01, 1, seed=0)) == 1


@pytest.mark.slow
async def test_a_server_is_started_asked_and_judged(tmp_path: Path) -> None:
    settings = Settings(SHIPPED, threads=1, max_sequences=8, max_batched_tokens=256, max_model_len=1024, logs=tmp_path)
    with capstan(settings) as address:
        contestant = Contestant(address)
        tried = await contestant.trial(9, seconds=2, rounds=1)
        texts = await contestant.beginnings()
        assert await contestant.served_per_s(1) > 0
    assert tried.summary.completed == tried.summary.requests > 0
    assert tried.figures.ttft_ms.p95 is not None
    assert tried.goodput == tried.figures.good / 2
    assert all(texts)


# The server ends by itself in the end, so that a test that fails leaves nothing behind.
SERVER = """
import http.server, os, sys, threading
threading.Timer(60, os._exit, [0]).start()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""
BENCH = """
import pathlib, sys, time
logs, server, port = sys.argv[1:]
from servers import started
with started("server", [sys.executable, "-c", server, port], {}, pathlib.Path(logs), int(port), ""):
    print("up", flush=True)
    time.sleep(60)
"""


def test_a_bench_that_is_told_to_end_leaves_no_server_running(tmp_path: Path) -> None:
    port = free_port()
    words = [sys.executable, "-c", BENCH, str(tmp_path), SERVER, str(port)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as bench:
        assert bench.stdout is not None
        assert bench.stdout.readline() == b"up\n"
        bench.send_signal(signal.SIGTERM)
        assert bench.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port)).close()
