"""The engine on CPU against llama.cpp and transformers: same checkpoint, precision, threads and prompts, in turn.

    python tests/bench/cpu.py                     the table of `make bench`; writes build/bench/cpu.json
    python tests/bench/cpu.py --shapes tiny --batches 1 8 --rounds 5

Weights are random but for `tiny`, the shipped model. All decode greedily. Contestants take turns within each round and
the table holds the best of the rounds, since a noisy machine only ever makes a run slower; machines differ, so quote
the ratios. `same` is the share of prompts whose first token is the same as the peer's: it is no figure of speed but the
proof that both run the same model.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
import transformers
from checkpoints import SHAPES, checkpoint
from ours import Ours
from peers_cpu import LLAMA, Llama, Run, Transformers, as_gguf
from results import BUILD, keep

from capstan_api.engine_args import Quantization

# Ours, and what llama.cpp calls its nearest: 4 bits in groups of 32 as well, the head at 8 bits for ours and 6 for it.
_FORMATS = {
    "bf16": (Quantization.NONE, "BF16"),
    "int8": (Quantization.INT8, "Q8_0"),
    "int8-dynamic": (Quantization.INT8_DYNAMIC, "Q8_0"),
    "int4": (Quantization.INT4_GROUP32, "Q4_0"),
}
_PROMPT_TOKENS = {1: 512, 8: 128}


def compare(shape: str, form: str, args: argparse.Namespace, with_llama: bool) -> Iterator[dict[str, object]]:
    """Run every batch size of one shape and format, and yield one record for each comparison."""
    model_dir = checkpoint(shape)
    quantization, kind = _FORMATS[form]
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    most = max(args.batches)
    longest = max(_PROMPT_TOKENS.get(batch, 128) for batch in args.batches) + args.output_tokens
    clock = time.process_time if args.processor_time else time.perf_counter
    with ExitStack() as stack:
        contestants: dict[str, Callable[[Sequence[list[int]], int], Run]] = {
            "ours": _runs(
                Ours(
                    model_dir,
                    sequences=most,
                    longest=longest,
                    kv_tokens=most * longest,
                    quantization=quantization,
                    threads=args.threads,
                    clock=clock,
                )
            )
        }
        if with_llama and shape != "tiny":
            gguf = as_gguf(model_dir, kind)
            llama = stack.enter_context(Llama(gguf, threads=args.threads, sequences=most, tokens=longest, clock=clock))
            contestants["llama.cpp"] = llama.run
        if form == "bf16":
            contestants["transformers"] = Transformers(model_dir, "bfloat16", clock).run
        for batch in args.batches:
            length = _PROMPT_TOKENS.get(batch, 128)
            generator = torch.Generator().manual_seed(batch)
            prompts = torch.randint(3, vocab_size, (batch, length), generator=generator).tolist()
            runs: dict[str, list[Run]] = {name: [] for name in contestants}
            for number in range(args.rounds + 1):
                for name, run in contestants.items():
                    # The first round warms up: shapes that are seen for the first time generate code.
                    result = run(prompts, args.output_tokens if number else 2)
                    if number:
                        runs[name].append(result)
            yield from _records(f"{shape} {form} B{batch}", runs, batch, length, args.output_tokens)


def _runs(ours: Ours) -> Callable[[Sequence[list[int]], int], Run]:
    def run(prompts: Sequence[list[int]], num_tokens: int) -> Run:
        courses = ours.run(prompts, [num_tokens] * len(prompts))
        first, last = (max(course[index] for course in courses) for index in (0, 1))
        return Run(first, last - first, [course.tokens for course in courses])

    return run


def _records(
    case: str, runs: dict[str, list[Run]], batch: int, length: int, output_tokens: int
) -> Iterator[dict[str, object]]:
    ours = runs.pop("ours")
    for peer, theirs in runs.items():
        pairs = zip(ours[0].tokens, theirs[0].tokens, strict=True)
        same = statistics.mean(a[0] == b[0] for a, b in pairs)
        for phase, num, index in (("prefill", batch * length, 0), ("decode", batch * (output_tokens - 1), 1)):
            a, b = (num / min(run[index] for run in of) for of in (ours, theirs))
            record = {"case": f"{case} {phase}", "ours": round(a, 1), "unit": "tok/s", "peer": peer}
            yield {**record, "peer_value": round(b, 1), "ratio": round(a / b, 2), "same": round(same, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["tiny", *SHAPES], default=["125m", "1.1b"])
    parser.add_argument("--formats", nargs="+", choices=list(_FORMATS), default=list(_FORMATS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="with one thread, on a machine that others use too: count what each process got of the processor",
    )
    parser.add_argument("--json", type=Path, default=BUILD / "cpu.json")
    args = parser.parse_args()
    if args.processor_time and args.threads > 1:
        parser.error("--processor-time needs --threads 1: threads that wait for each other take processor time as well")
    # A GPU that is there would be taken.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    missing = LLAMA.install()
    if missing:
        print(f"LEFT OUT llama.cpp: {missing}")
    print(
        f"{args.threads} thread(s), best of {args.rounds}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}\n\n"
        f"| case | ours tok/s | peer | its tok/s | ratio | same |\n|---|---|---|---|---|---|"
    )
    records = []
    for shape in args.shapes:
        for form in args.formats:
            for record in compare(shape, form, args, with_llama=missing is None):
                records.append(record)
                print(
                    f"| {record['case']} | {record['ours']:,} | {record['peer']} | {record['peer_value']:,} "
                    f"| {record['ratio']} | {record['same']:.0%} |",
                    flush=True,
                )
    keep(args.json, records)


if __name__ == "__main__":
    main()
