"""Tokens per second on CPU: our engine against transformers `generate`, same checkpoint, same prompts, same run.

    python tests/bench/bench_cpu.py [--model DIR] [--dtype bfloat16 float32] [--batch 1 8 32] [--threads 1]

Both decode greedily. Prefill is the time until every request of the batch has its first token, decode the time after
it. The two take turns, and the table holds medians over the rounds, so that a noisy machine harms both alike; `agree`
is the share of tokens on which both agree (in bfloat16 near-ties fall differently after some tokens).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from capstan_api.engine_args import Precision
from capstan_api.limits import BatchLimits
from capstan_engine.engine import Engine
from capstan_engine.messages import SamplingParams, Submit
from capstan_engine.runner.load import build_runner
from capstan_engine.scheduler.scheduler import Scheduler

_SHIPPED = Path(__file__).parents[2] / "runtime_image" / "models" / "capstan-tiny"
_PRECISION = {"bfloat16": Precision.BFLOAT16, "float32": Precision.FLOAT32}


class Run(NamedTuple):
    """Seconds of one run, and its tokens."""

    prefill_s: float
    decode_s: float
    tokens: list[list[int]]


class Ours:
    """The engine with its real scheduler, in this process."""

    def __init__(self, model_dir: Path, dtype: str, num_threads: int, most: int, length: int) -> None:
        block_size = 16
        layers, heads, width = _kv_shape(model_dir)
        token_bytes = 2 * layers * heads * width * (2 if dtype == "bfloat16" else 4)
        runner = build_runner(
            model_dir,
            precision=_PRECISION[dtype],
            kv_cache_bytes=(most + 1) * (length + block_size) * token_bytes * 2,
            block_size=block_size,
            max_model_len=length,
            num_threads=num_threads,
        )
        runner.warm_up()
        scheduler = Scheduler(
            num_blocks=runner.num_blocks,
            block_size=block_size,
            max_model_len=length,
            limits=BatchLimits(max_sequences=most, max_batched_tokens=most * length),
            max_queued_requests=most,
            prefix_caching=False,
        )
        self._engine = Engine(scheduler, runner)

    def run(self, prompts: Sequence[list[int]], num_tokens: int) -> Run:
        params = SamplingParams(seed=0, max_tokens=num_tokens, temperature=0.0)
        tokens: dict[str, list[int]] = {}
        started = time.perf_counter()
        for number, prompt in enumerate(prompts):
            tokens[f"{number}"] = []
            self._engine.submit(Submit(f"{number}", prompt, params, time.monotonic()))
        first = 0.0
        while self._engine.has_work:
            for output in self._engine.step().outputs:
                tokens[output.request_id] += output.token_ids
            if not first and all(tokens.values()):
                first = time.perf_counter()
        return Run(first - started, time.perf_counter() - first, list(tokens.values()))


class Theirs:
    """transformers `generate` with scaled_dot_product_attention."""

    def __init__(self, model_dir: Path, dtype: str) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        ).eval()
        self._model.generation_config = transformers.GenerationConfig(pad_token_id=0)

    def run(self, prompts: Sequence[list[int]], num_tokens: int) -> Run:
        stamps: list[float] = []

        def stamp(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            stamps.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool)

        ids = torch.tensor(prompts)
        started = time.perf_counter()
        with torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=num_tokens,
                stopping_criteria=transformers.StoppingCriteriaList([stamp]),
            )
        return Run(stamps[0] - started, stamps[-1] - stamps[0], out[:, ids.shape[1] :].tolist())


def _kv_shape(model_dir: Path) -> tuple[int, int, int]:
    config = json.loads((model_dir / "config.json").read_text())
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return config["num_hidden_layers"], config.get("num_key_value_heads") or heads, width


def _random_model(directory: Path) -> Path:
    """The shape of the shipped model, with random weights."""
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def compare(model_dir: Path, dtype: str, batches: Sequence[int], args: argparse.Namespace) -> None:
    """Print one line for each batch size."""
    vocab_size = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    length = args.prompt_tokens + args.output_tokens
    ours = Ours(model_dir, dtype, args.threads, max(batches), length)
    theirs = Theirs(model_dir, dtype)
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        prompts = torch.randint(3, vocab_size, (batch, args.prompt_tokens), generator=generator).tolist()
        runs: dict[str, list[Run]] = {"ours": [], "theirs": []}
        for number in range(args.rounds + 1):
            pair = ours.run(prompts, args.output_tokens), theirs.run(prompts, args.output_tokens)
            if number:  # the first round warms up
                runs["ours"].append(pair[0])
                runs["theirs"].append(pair[1])
        num_decoded = batch * (args.output_tokens - 1)
        prefill = {k: batch * args.prompt_tokens / statistics.median(r.prefill_s for r in v) for k, v in runs.items()}
        decode = {k: num_decoded / statistics.median(r.decode_s for r in v) for k, v in runs.items()}
        step_ms = 1e3 * batch / decode["ours"]
        pairs = zip(runs["ours"][0].tokens, runs["theirs"][0].tokens, strict=True)
        agree = statistics.mean(a == b for x, y in pairs for a, b in zip(x, y, strict=True))
        print(
            f"{dtype:9} {batch:5} │ {prefill['ours']:9.0f} {prefill['theirs']:9.0f} {_ratio(prefill):6.2f} │ "
            f"{decode['ours']:9.0f} {decode['theirs']:9.0f} {_ratio(decode):6.2f} │ {step_ms:8.2f} │ {agree:6.1%}",
            flush=True,
        )


def _ratio(speed: dict[str, float]) -> float:
    return speed["ours"] / speed["theirs"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint; the shipped one unless told, or random of its shape")
    parser.add_argument("--dtype", nargs="+", choices=list(_PRECISION), default=list(_PRECISION))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        model_dir = args.model or (_SHIPPED if _SHIPPED.is_dir() else _random_model(Path(scratch)))
        print(
            f"{model_dir.name}, {args.prompt_tokens} + {args.output_tokens} tokens, {args.threads} thread(s), "
            f"median of {args.rounds}; torch {torch.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}\n"
        )
        print(f"{'':15} │ {'prefill tokens/s':^26} │ {'decode tokens/s':^26} │ {'decode':>8} │")
        columns = f"{'capstan':>9} {'transf.':>9} {'ratio':>6}"
        print(f"{'dtype':9} {'batch':>5} │ {columns} │ {columns} │ {'step ms':>8} │ {'agree':>6}")
        for dtype in args.dtype:
            compare(model_dir, dtype, args.batch, args)


if __name__ == "__main__":
    main()
