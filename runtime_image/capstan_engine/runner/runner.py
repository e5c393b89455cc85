"""Executes one step's plan: batch, model, logits where they are needed, tokens.

Keeps nothing about requests between steps: all it remembers is in the KV cache. A request whose logits are not finite
is reported alone; the others cannot tell that it was there.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from capstan_api.footprint import MemoryFigures
from capstan_engine.kernels import Kernels
from capstan_engine.messages import SamplingParams, TokenLogprobs
from capstan_engine.models.decoder import Decoder
from capstan_engine.runner.batch import Batch, build_batch
from capstan_engine.runner.kv_cache import KvCache
from capstan_engine.runner.logprobs import token_logprobs
from capstan_engine.runner.sampler import sample
from capstan_engine.scheduler.step import Sampled, ScheduledRequest, StepPlan, StepResult

_LOGPROB_ROWS = 256
"""Prompt positions whose logits are held at once."""
_WARM_UP_TOKENS = 64
_WARM_UP_PARAMS = SamplingParams(seed=0, max_tokens=1, repetition_penalty=1.1, logit_bias={0: 0.0})
"""What a sampler has code of its own for."""


class Runner:
    """The model, its KV cache and its kernels."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        kernels: Kernels,
        figures: MemoryFigures,
        *,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        self.figures = figures
        """What the model takes of memory."""
        self._decoder = decoder
        self._cache = cache
        self._kernels = kernels
        self._dtype = dtype
        self._device = device

    @property
    def num_blocks(self) -> int:
        """Blocks of the KV cache."""
        return self._cache.layout.num_blocks

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._cache.layout.block_size

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._decoder.spec.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The model's own end-of-sequence ids."""
        return self._decoder.spec.eos_token_ids

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's tokens and draw where a request `samples`. Pure but for the KV cache."""
        if not plan:
            return StepResult()
        batch = build_batch(
            plan.scheduled, self._kernels, self._cache.layout, self._decoder.windows, self._dtype, self._device
        )
        if batch.new_blocks:
            self._cache.clear(batch.new_blocks)
        hidden = self._decoder.forward(batch.token_ids, batch.positions, self._cache.layers, batch.plans)
        sampled, errors = self._sample(batch, hidden)
        return StepResult(sampled, self._prompt_logprobs(batch, hidden), errors)

    def warm_up(self, progress: Callable[[], None] = lambda: None) -> None:
        """Run the smaller batch sizes once: the first step of each size generates code for its shapes.

        `progress` is called before each.

        Writes to the first blocks of the cache, so it must come before any request holds them.
        """
        sizes = sorted({self._kernels.round_up(num) for num in range(1, _WARM_UP_TOKENS + 1)})
        for num in sizes:
            progress()
            self.execute(StepPlan(tuple(self._dummy(f"{i}", 1) for i in range(num))))
            if num <= self._decoder.num_positions:
                self.execute(StepPlan((self._dummy("0", num),)))

    def _dummy(self, request_id: str, length: int) -> ScheduledRequest:
        blocks, ids = list(range(-(-length // self.block_size))), [0] * length
        return ScheduledRequest(request_id, ids, 0, blocks, _WARM_UP_PARAMS, True, ids, [])

    def _sample(self, batch: Batch, hidden: torch.Tensor) -> tuple[dict[str, Sampled], dict[str, str]]:
        chosen = [
            (request, row + len(request.token_ids) - 1)
            for request, row in zip(batch.requests, batch.first_rows, strict=True)
            if request.samples
        ]
        if not chosen:
            return {}, {}
        requests = [request for request, _ in chosen]
        logits = self._logits(hidden, [row for _, row in chosen])
        tokens = sample(self._kernels, logits, requests)
        logprobs = _output_logprobs(logits, requests, tokens)
        sampled: dict[str, Sampled] = {}
        errors: dict[str, str] = {}
        for index, (request, token_id) in enumerate(zip(requests, tokens, strict=True)):
            if token_id is None:
                errors[request.request_id] = "the model's logits are not finite"
            else:
                sampled[request.request_id] = Sampled(token_id, logprobs.get(index))
        return sampled, errors

    def _prompt_logprobs(self, batch: Batch, hidden: torch.Tensor) -> dict[str, list[TokenLogprobs]]:
        return {
            request.request_id: list(self._chunk_logprobs(request, row, hidden, request.params.prompt_logprobs))
            for request, row in zip(batch.requests, batch.first_rows, strict=True)
            if request.params.prompt_logprobs is not None and request.start + 1 < len(request.prompt_token_ids)
        }

    def _chunk_logprobs(
        self, request: ScheduledRequest, row: int, hidden: torch.Tensor, num: int
    ) -> Iterator[TokenLogprobs]:
        """The row at position p predicts the prompt's token p + 1."""
        first = request.start + 1
        ids = request.prompt_token_ids[first : first + len(request.token_ids)]
        for offset in range(0, len(ids), _LOGPROB_ROWS):
            part = ids[offset : offset + _LOGPROB_ROWS]
            logits = self._logits(hidden, range(row + offset, row + offset + len(part)))
            yield from token_logprobs(logits, part, [num] * len(part))

    def _logits(self, hidden: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """`[len(rows), V]`"""
        padded = [*rows, *[rows[0]] * (self._kernels.round_up(len(rows)) - len(rows))]
        if padded == list(range(hidden.shape[0])):
            return self._decoder.logits(hidden)[: len(rows)]
        return self._decoder.logits(hidden[padded])[: len(rows)]


def _output_logprobs(
    logits: torch.Tensor, requests: Sequence[ScheduledRequest], tokens: Sequence[int | None]
) -> dict[int, TokenLogprobs]:
    """By row, for the rows that ask and have a token."""
    wanted = [
        (row, token_id, request.params.logprobs)
        for row, (request, token_id) in enumerate(zip(requests, tokens, strict=True))
        if token_id is not None and request.params.logprobs is not None
    ]
    if not wanted:
        return {}
    rows, ids, counts = (list(column) for column in zip(*wanted, strict=True))
    return dict(zip(rows, token_logprobs(logits[rows], ids, counts), strict=True))
