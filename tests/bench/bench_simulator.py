"""The simulator against a live engine: percentiles of TTFT and TPOT on the same arrivals.

    python tests/bench/bench_simulator.py [--rate 2] [--seconds 90] [--out build/bench/simulator.json]

One engine with the shipped model on one processor. One load fits its step model (`capstan bench --calibrate`), another
one, which the fit has never seen, is sent to it and simulated; no prompt begins like another, so that no prefix is
found. Exits with 1 when an error is above its bound, 10 % of the median or 20 % of the p95. Takes about four minutes.
The machine should have nothing else to do: the errors are those of the simulator and of whatever else was running.
"""

import argparse
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from checkpoints import SHIPPED
from results import BUILD
from servers import engine

TOKEN = "bench"
NUM_SEQUENCES, NUM_TOKENS = 32, 512
BOUNDS = {"p50": 0.10, "p95": 0.20}
"""Of the relative error of each percentile."""
SPEC = f"""
apiVersion: capstan.dev/v1alpha1
kind: InferenceDeployment
metadata: {{name: live}}
spec:
  model: {{source: {{uri: "bundled://capstan-tiny"}}}}
  engine: {{batching: {{maxSequences: {NUM_SEQUENCES}, maxBatchedTokens: {NUM_TOKENS}}}}}
  slos: [{{name: default, ttft: {{thresholdMilliseconds: 1000}}, tpot: {{thresholdMilliseconds: 100}}}}]
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rate", type=float, default=2.0, help="requests/s")
    options.add_argument("--seconds", type=float, default=90.0, help="length of each of the two loads")
    options.add_argument("--out", type=Path, default=BUILD / "simulator.json")
    args = options.parse_args()
    work = args.out.parent / "simulator"
    work.mkdir(parents=True, exist_ok=True)
    (work / "spec.yaml").write_text(SPEC)
    for number, name in enumerate(("seen", "unseen")):
        (work / f"{name}.csv").write_text(load(args.rate, args.seconds, seed=number))
    words = [
        "--model",
        SHIPPED,
        "--max-sequences",
        NUM_SEQUENCES,
        "--max-batched-tokens",
        NUM_TOKENS,
        "--num-threads",
        1,
    ]
    with engine(*words, logs=work, token=TOKEN) as (url, admin_url):
        calibrating = ["--calibrate", work / "model.json", "--engine-admin", admin_url]
        capstan("bench", url, "--trace", work / "seen.csv", "--seed", 1, "--json", work / "seen.json", *calibrating)
        # Other prompts too: what the first load has left in the prefix cache, the simulator knows nothing of.
        capstan("bench", url, "--trace", work / "unseen.csv", "--seed", 2, "--json", work / "live.json")
    asked = ["--spec", work / "spec.yaml", "--step-model", work / "model.json", "--policy", "static:1"]
    capstan("simulate", "--trace", work / "unseen.csv", *asked, "--json", work / "simulated.json")
    live = json.loads((work / "live.json").read_text())["summary"]["classes"][0]
    simulated = json.loads((work / "simulated.json").read_text())["classes"]["default"]
    errors = compared(live, simulated)
    args.out.write_text(json.dumps(errors, indent=1) + "\n")
    sys.exit(int(any(not row["within_bound"] for row in errors)))


def load(rate: float, seconds: float, seed: int) -> str:
    """A trace of Poisson arrivals with lengths of chats."""
    draw, at, rows = random.Random(seed), 0.0, ["t,prompt,output"]
    while (at := at + draw.expovariate(rate)) < seconds:
        rows.append(f"{at:.3f},{draw.choice((40, 80, 150, 300, 600))},{draw.choice((8, 20, 40, 80))}")
    return "\n".join(rows) + "\n"


def capstan(*words: object) -> None:
    command = [sys.executable, "-m", "capstan_cli", *map(str, words)]
    subprocess.run(command, check=True, env=os.environ | {"CAPSTAN_ADMIN_TOKEN": TOKEN})


def compared(live: dict[str, Any], simulated: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    print(f"{'':12}{'live ms':>10}{'simulated':>11}{'error':>8}{'bound':>7}")
    for kind in ("ttft_ms", "tpot_ms"):
        for percentile, bound in BOUNDS.items():
            measured, told = live[kind][percentile], simulated[kind][percentile]
            error = told / measured - 1
            print(f"{kind[:4]} {percentile:7}{measured:>10.1f}{told:>11.1f}{error:>8.1%}{bound:>7.0%}")
            row = {"of": kind, "percentile": percentile, "live": measured, "simulated": told, "error": error}
            rows.append({**row, "within_bound": abs(error) <= bound})
    return rows


if __name__ == "__main__":
    main()
