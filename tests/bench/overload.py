"""One live engine that is asked for more than it can do: requests in time, when it knows their threshold and when not.

    python tests/bench/overload.py [--loads 0.8,1.2,1.6,2] [--seconds 20] [--rounds 3] [--out build/bench/overload.json]

The shipped model on one processor, Poisson arrivals, prompts of chats and short answers. What the engine can do is
measured first; loads are multiples of it. An engine that knows no threshold serves in order of arrival. The two take
turns within each round; figures are medians. Takes about a quarter of an hour with the defaults.
"""

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path

from checkpoints import SHIPPED
from results import BUILD, comparison, keep
from servers import engine

from capstan_api.engine_args import EngineArgs, SloClass
from capstan_api.limits import Envelope

TTFT_MS = 500
ENVELOPE = Envelope(min_sequences=1, max_sequences=32, min_batched_tokens=32, max_batched_tokens=512)
PROMPTS, OUTPUTS = (100, 200, 400, 800), (1, 2, 4)
KNOWS, KNOWS_NOT = "knows its threshold", "in order of arrival"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--loads", default="0.8,1.2,1.6,2", help="multiples of what the engine can do")
    options.add_argument("--seconds", type=float, default=20.0, help="length of each load")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", type=Path, default=BUILD / "overload.json")
    args = options.parse_args()
    work = args.out.parent / "overload"
    work.mkdir(parents=True, exist_ok=True)
    capacity = measured_capacity(work)
    print(f"{capacity:.1f} requests/s at most; in time: first token within {TTFT_MS} ms")
    print(f"{'load':>6}{KNOWS:>22}{KNOWS_NOT:>22}{'ratio':>8}")
    for load in map(float, args.loads.split(",")):
        in_time: dict[str, list[float]] = {KNOWS: [], KNOWS_NOT: []}
        for number in range(args.rounds):
            for name, found in in_time.items():
                trace = work / "trace.csv"
                trace.write_text(arrivals(load * capacity, args.seconds, seed=number))
                ttft_s = TTFT_MS / 1000 if name == KNOWS else None
                found.append(asked(work, ttft_s, "--trace", trace, "--seed", number))
        ours, theirs = (statistics.median(in_time[name]) for name in (KNOWS, KNOWS_NOT))
        ratio = ours / theirs if theirs else math.inf
        print(f"{load:>6.1f}{ours:>22.1%}{theirs:>22.1%}{ratio:>8.2f}", flush=True)
        keep(args.out, [comparison(f"overload {load:g}", ours, "share in time", KNOWS_NOT, theirs, ratio)])


def measured_capacity(work: Path) -> float:
    """Requests/s of an engine that has all of them at once."""
    (work / "all.csv").write_text(arrivals(1000.0, 0.6, seed=99))
    asked(work, None, "--trace", work / "all.csv", "--seed", 99)
    return float(json.loads((work / "result.json").read_text())["summary"]["requests_per_s"])


def asked(work: Path, ttft_s: float | None, *words: object) -> float:
    """The share of requests in time, of an engine that is told this threshold."""
    slo_class = SloClass(name="default", ttft_seconds=ttft_s)
    config = EngineArgs(
        model=SHIPPED,
        served_model_names=("tiny",),
        envelope=ENVELOPE,
        num_threads=1,
        # Nobody is refused: who is late is counted, and not turned away.
        max_queued_requests=100_000,
        slo_classes=(slo_class,),
    )
    (work / "engine.json").write_text(config.model_dump_json())
    with engine("--config", work / "engine.json", logs=work) as (url, _):
        command = [sys.executable, "-m", "capstan_cli", "bench", url, *words]
        command += ["--ttft-ms", TTFT_MS, "--json", work / "result.json"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return float(json.loads((work / "result.json").read_text())["summary"]["attainment_percent"]) / 100


def arrivals(rate: float, seconds: float, seed: int) -> str:
    """A trace of Poisson arrivals."""
    draw, at, rows = random.Random(seed), 0.0, ["t,prompt,output"]
    while (at := at + draw.expovariate(rate)) < seconds:
        rows.append(f"{at:.4f},{draw.choice(PROMPTS)},{draw.choice(OUTPUTS)}")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
