"""The engine as the benches run it: with its real scheduler, in this process, and greedily."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from capstan_api.engine_args import EngineArgs, Precision, Quantization
from capstan_api.limits import Envelope
from capstan_engine.build import build_engine
from capstan_engine.messages import SamplingParams, Submit
from capstan_engine.models.families import read_spec
from capstan_engine.quant.storage import STORAGES
from capstan_engine.runner import device, memory

_BLOCK_SIZE = 16


class Course(NamedTuple):
    """What became of one request."""

    first_s: float
    """From the start until its first token was known."""
    last_s: float
    tokens: list[int]


class Ours:
    """An engine in bfloat16 for `sequences` of up to `longest` tokens, `kv_tokens` in all."""

    def __init__(
        self,
        model_dir: Path,
        *,
        sequences: int,
        longest: int,
        kv_tokens: int,
        batched_tokens: int = 2048,
        quantization: Quantization = Quantization.NONE,
        threads: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self.figures = memory.figures(
            read_spec(model_dir), STORAGES[quantization], memory.HABITS[device.kind()], itemsize=2
        )
        args = EngineArgs(
            model=model_dir,
            served_model_names=("bench",),
            precision=Precision.BFLOAT16,
            quantization=quantization,
            max_model_len=longest,
            envelope=Envelope(
                min_sequences=1,
                max_sequences=sequences,
                min_batched_tokens=1,
                max_batched_tokens=batched_tokens,
            ),
            block_size=_BLOCK_SIZE,
            kv_cache_bytes=(kv_tokens + sequences * _BLOCK_SIZE) * self.figures.kv_token,
            prefix_caching=False,
            max_queued_requests=sequences,
            num_threads=threads,
        )
        self.engine, self.startup_s = build_engine(args, lambda _: None)

    def submit(self, number: int, prompt: Sequence[int], num_tokens: int) -> str:
        """Its id."""
        params = SamplingParams(seed=0, max_tokens=num_tokens, temperature=0.0)
        self.engine.submit(Submit(f"{number}", list(prompt), params, time.monotonic()))
        return f"{number}"

    def run(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[Course]:
        """All of them at once, each until it has its number of tokens."""
        started = self._clock()
        courses = {
            self.submit(number, prompt, length): Course(0.0, 0.0, [])
            for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
        }
        while self.engine.has_work:
            outputs = self.engine.step().outputs
            now = self._clock() - started
            for output in outputs:
                course = courses[output.request_id]
                course.tokens.extend(output.token_ids)
                courses[output.request_id] = Course(course.first_s or now, now, course.tokens)
        return list(courses.values())
