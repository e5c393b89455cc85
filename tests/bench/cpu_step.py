"""Where the time of one CPU decode step goes: the table "One decode step" of PERFORMANCE.md.

    python tests/bench/cpu_step.py                          125 M parameters, one request, 256 tokens of context
    python tests/bench/cpu_step.py --formats Int4Group32 --batch 8

One thread, in processor time, so that a machine which others use too tells much the same. Python's profiler charges
each function of ours with what it calls in C++ and in torch, and functions are summed up by the work they belong to:
"layers" are those that are computed at once, products, attention and all, and "products" is then the output head. What
the profiler itself takes, some microseconds for each call, is in all columns but the first, which ran without it.
"""

import argparse
import cProfile
import pstats
import time
from pathlib import Path
from typing import Final

import torch
from checkpoints import SHAPES, checkpoint
from ours import Ours

from capstan_api.engine_args import Quantization

_PARTS: Final = {
    "layers": ("kernels/native/layers.py",),
    "products": ("kernels/native/products.py", "kernels/reference/linear.py", "quant/"),
    "attention": ("kernels/native/attention.py", "kernels/reference/attention.py"),
    "norms and gate": ("kernels/native/elementwise.py", "kernels/reference/elementwise.py"),
    "planning": ("kernels/reference/planning.py", "kernels/native/planning.py", "runner/batch.py"),
    "sampling": (
        "kernels/reference/sampling.py",
        "kernels/native/sampling.py",
        "runner/sampler.py",
        "runner/logprobs.py",
    ),
    "model": ("models/",),
    "scheduler": ("scheduler/",),
}
"""By the beginning of a file's path in the engine; what is in none of them is "rest"."""
_WARM_UP_STEPS: Final = 4


def measure(model_dir: Path, quantization: Quantization, batch: int, context: int, steps: int) -> dict[str, float]:
    """Milliseconds of one step, and of each part."""
    total = context + 2 * steps + _WARM_UP_STEPS + 1
    ours = Ours(
        model_dir,
        sequences=batch,
        longest=total,
        kv_tokens=batch * total,
        quantization=quantization,
        threads=1,
        clock=time.process_time,
    )
    generator = torch.Generator().manual_seed(0)
    for number in range(batch):
        ours.submit(number, torch.randint(3, 1000, (context,), generator=generator).tolist(), total - context)
    for _ in range(_WARM_UP_STEPS):
        ours.engine.step()
    times = []
    for _ in range(steps):
        started = time.process_time()
        ours.engine.step()
        times.append(time.process_time() - started)
    profile = cProfile.Profile(time.process_time, builtins=False)
    profile.enable()
    for _ in range(steps):
        ours.engine.step()
    profile.disable()
    row = {"step": 1000 * min(times)} | dict.fromkeys((*_PARTS, "rest"), 0.0)
    for (file, _, _), (_, _, own_s, _, _) in pstats.Stats(profile).stats.items():
        row[_part(file)] += 1000 * own_s / steps
    return row


def _part(file: str) -> str:
    inside = file.partition("capstan_engine/")[2]
    return next((part for part, places in _PARTS.items() if inside.startswith(places)), "rest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["tiny", *SHAPES], default="125m")
    formats = [Quantization.NONE, Quantization.INT8, Quantization.INT8_DYNAMIC, Quantization.INT4_GROUP32]
    parser.add_argument("--formats", nargs="+", type=Quantization, default=formats, metavar="FORMAT")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    columns = ["step", *_PARTS, "rest"]
    print(f"| | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for quantization in args.formats:
        row = measure(checkpoint(args.shape), quantization, args.batch, args.context, args.steps)
        print(f"| {quantization} | {' | '.join(f'{row[column]:.2f}' for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
