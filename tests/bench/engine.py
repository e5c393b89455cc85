"""The whole engine, offline: against what the machine can do, measured in the same run, and against transformers.

    python tests/bench/engine.py                 Llama-3-8B's shape on a GPU; adds its rows to build/bench/gpu.json
    python tests/bench/engine.py --shape tiny    the shipped model and short prompts, on whatever device there is

Random weights are made on the GPU and written once (16 GB), so that start-up is measured too. Everything runs on the
device that the engine chooses: `CUDA_VISIBLE_DEVICES=` hides a GPU, and the rows go to build/bench/cpu.json then. A
ratio above 1 means that ours is better than the peer; against a ceiling it is the share that is reached. The peer is
given the same requests, and a bounded time for them.
"""

import argparse
import gc
import platform
import random
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import torch
import transformers
from checkpoints import SHAPES, checkpoint
from idle import activity, busy_share
from ours import Course, Ours
from peers_continuous import NAME, ContinuousBatching
from results import BUILD, Case, Row, comparison, measure
from roofline import Ceilings, ceilings, seconds
from torch.autograd import DeviceType

from capstan_engine.models import shapes
from capstan_engine.models.families import read_spec
from capstan_engine.models.spec import ModelSpec
from capstan_engine.runner import device

ROUNDS: Final = 3
"""Of what is short; the best counts, since a machine only ever makes a run slower."""


BATCHED_TOKENS: Final = 2048
"""Of one step, for both."""
PEER_S: Final = 240.0
"""For the peer's run: then it counts what it has. With scaled_dot_product_attention it reads every request's keys for
every request."""


@dataclass(frozen=True)
class Sizes:
    """Of the cases."""

    matrix: int = 8192
    copied_bytes: int = 4 << 30
    alone: tuple[int, int] = (128, 128)
    """Prompt and output tokens of the request that decodes alone."""
    prompt: int = 1024
    """Of the one whose first token is waited for."""
    prompts: tuple[int, int] = (8, 2048)
    """Prompts, and tokens of each, that are read together."""
    mix: tuple[int, int, int] = (256, 100, 1024)
    """Requests, and the fewest and most tokens of each prompt and of each output, drawn evenly."""
    crowd: int = 64
    """Sequences that decode together while the device is watched."""
    watched_steps: int = 32


LARGE: Final = Sizes()
SMALL: Final = Sizes(
    matrix=256, copied_bytes=8 << 20, alone=(8, 8), prompt=64, prompts=(2, 48), mix=(6, 4, 24), crowd=4, watched_steps=4
)


def cases(model_dir: Path, sizes: Sizes) -> Iterator[Case]:
    """One after the other: the next is asked for when the one before is done with."""
    spec, kind = read_spec(model_dir), device.kind()
    limit = ceilings(seconds, matrix=sizes.matrix, copied_bytes=sizes.copied_bytes, dtype=torch.bfloat16, device=kind)
    num, low, high = sizes.mix
    mix = Mix(f"{num} sequences of {low} to {high} tokens in and out", *mixed(spec, sizes))
    ours = Ours(
        model_dir,
        sequences=max(num, sizes.crowd),
        batched_tokens=BATCHED_TOKENS,
        longest=max(2 * high, sizes.prompts[1] + 1, sizes.prompt + 1),
        kv_tokens=max(mix.num_tokens, sizes.prompts[0] * (sizes.prompts[1] + 1)),
    )
    for phase, taken in ours.startup_s.items():
        print(f"start-up, {phase}: {taken:.1f} s", flush=True)
    yield Case("decoding alone", partial(decoding_alone, ours, spec, sizes, limit))
    yield Case("reading prompts", partial(reading, ours, spec, sizes, limit))
    if kind == "cuda":
        yield Case("at work while many decode", partial(computing, ours, spec, sizes, DeviceType.CUDA))
    yield Case(mix.name, partial(mix.by_ours, ours, spec, limit))
    # The peer needs the memory.
    del ours
    yield Case(f"{mix.name}, {NAME}", partial(mix.by_transformers, model_dir, kind))


@dataclass
class Mix:
    """Requests of all lengths at once, and what became of ours."""

    name: str
    prompts: list[list[int]]
    lengths: list[int]
    """Tokens that each is continued with."""
    courses: list[Course] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.prompts)) + sum(self.lengths)

    @property
    def rate(self) -> float:
        """Output tokens per second of ours."""
        return sum(self.lengths) / max(course.last_s for course in self.courses)

    def by_ours(self, ours: Ours, spec: ModelSpec, limit: Ceilings) -> Iterator[Row]:
        """Against what all of it takes at least.

        That is the prompts' products, one reading of the weights for each step of the longest output, and one of its
        context for each token.
        """
        self.courses = ours.run(self.prompts, self.lengths)
        flops = sum(prompt_flops(spec, len(prompt)) for prompt in self.prompts)
        keys = sum(num * (len(prompt) + num / 2) for prompt, num in zip(self.prompts, self.lengths, strict=True))
        read = 2 * num_weights(spec, with_head=True) * max(self.lengths) + keys * ours.figures.kv_token
        most = sum(self.lengths) / (flops / limit.flops_per_s + read / limit.bytes_per_s)
        yield comparison(self.name, self.rate, "tok/s", "matmul and copy", most, self.rate / most)

    def by_transformers(self, model_dir: Path, kind: str) -> Iterator[Row]:
        assert self.courses, "ours ended nothing that the peer could be compared with"
        gc.collect()
        torch.cuda.empty_cache()
        theirs = ContinuousBatching(model_dir, kind, BATCHED_TOKENS).run(self.prompts, self.lengths, PEER_S)
        pairs = [(ours.tokens[0], its[0]) for ours, its in zip(self.courses, theirs.tokens, strict=True) if its]
        same = statistics.mean(ours == its for ours, its in pairs)
        row = comparison(self.name, self.rate, "tok/s", NAME, theirs.rate, self.rate / theirs.rate)
        yield row | {"same": round(same, 2)}


def mixed(spec: ModelSpec, sizes: Sizes) -> tuple[list[list[int]], list[int]]:
    """Prompts, and the numbers of tokens that each is continued with."""
    draw = random.Random(0)
    num, low, high = sizes.mix
    prompts = [random_tokens(spec, draw.randint(low, high), seed) for seed in range(num)]
    return prompts, [draw.randint(low, high) for _ in range(num)]


def random_tokens(spec: ModelSpec, length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(3, spec.vocab_size) for _ in range(length)]


def decoding_alone(ours: Ours, spec: ModelSpec, sizes: Sizes, limit: Ceilings) -> Iterator[Row]:
    """The time between tokens of one request. Below it lies one reading of the weights."""
    num_prompt, num_tokens = sizes.alone
    prompt = random_tokens(spec, num_prompt, 0)
    courses = [ours.run([prompt], [num_tokens])[0] for _ in range(ROUNDS + 1)]
    taken = min((course.last_s - course.first_s) / (num_tokens - 1) for course in courses[1:])
    floor = 2 * num_weights(spec, with_head=True) / limit.bytes_per_s
    yield comparison(
        "decode, batch 1, one token", taken * 1000, "ms", "copy of the weights", floor * 1000, floor / taken
    )


def reading(ours: Ours, spec: ModelSpec, sizes: Sizes, limit: Ceilings) -> Iterator[Row]:
    """The time to the first token of one prompt, and the rate of several. Below both lie the products."""
    for num, length in ((1, sizes.prompt), sizes.prompts):
        prompts = [random_tokens(spec, length, seed) for seed in range(num)]
        runs = [ours.run(prompts, [1] * num) for _ in range(ROUNDS + 1)]
        taken = min(max(course.first_s for course in run) for run in runs[1:])
        floor = num * prompt_flops(spec, length) / limit.flops_per_s
        if num == 1:
            yield comparison(f"TTFT of {length} tokens", taken * 1000, "ms", "matmul", floor * 1000, floor / taken)
        else:
            rate, most = num * length / taken, num * length / floor
            yield comparison(f"prefill of {num} × {length} tokens", rate, "tok/s", "matmul", most, rate / most)


def computing(ours: Ours, spec: ModelSpec, sizes: Sizes, watched: DeviceType) -> Iterator[Row]:
    """The share of the time in which the device is at work while a crowd decodes."""
    num_prompt, _ = sizes.alone
    for number in range(sizes.crowd):
        # Enough for the steps until the last prompt is read, and for those that are watched.
        ours.submit(number, random_tokens(spec, num_prompt, number), 3 * sizes.watched_steps + sizes.crowd)
    decoding = 0
    while decoding < sizes.crowd:
        decoding = sum(sample.decode_sequences for sample in ours.engine.step().steps)
    share = busy_share(activity(lambda: [ours.engine.step() for _ in range(sizes.watched_steps)], watched))
    while ours.engine.has_work:
        ours.engine.step()
    case = f"at work while {sizes.crowd} decode"
    yield comparison(case, 100 * share, "% of the time", "never idle", 100, share)


def num_weights(spec: ModelSpec, *, with_head: bool) -> int:
    """Of the products of one token. Of the embedding it needs one row, which is not counted."""
    linears = [linear for index in range(spec.num_layers) for linear in shapes.layer_linears(spec, index)]
    if with_head:
        linears.append(shapes.head(spec))
    return sum(linear.out_features * linear.in_features for linear in linears)


def prompt_flops(spec: ModelSpec, length: int) -> float:
    """Of the products of a prompt: the head's for its last token, attention's for the causal half."""
    pairs = length * (length + 1) / 2
    attention = 4 * spec.num_layers * spec.num_heads * spec.head_dim * pairs
    return 2 * num_weights(spec, with_head=False) * length + 2 * spec.vocab_size * spec.hidden_size + attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["tiny", *SHAPES], default="8b")
    parser.add_argument("--json", type=Path, help="instead of build/bench/gpu.json or cpu.json")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{gpu or 'CPU'}; {versions}\n")
    path = args.json or BUILD / ("gpu.json" if gpu else "cpu.json")
    sizes = SMALL if args.shape == "tiny" else LARGE
    failed = measure(cases(checkpoint(args.shape), sizes), path, prefix=f"{args.shape} bf16 ")
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
