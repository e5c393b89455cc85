"""Launches one step: batch, model, logits where they are needed, tokens; and fetches what came of it.

Keeps nothing about requests between steps but the tokens that the last one drew, which the next may begin with: all
else is in the KV cache. Nothing waits for the device between a launch and the landing of its step. A request whose
logits are not finite is reported alone; the others cannot tell that it was there.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from capstan_api.footprint import MemoryFigures
from capstan_engine.block_table import block_table
from capstan_engine.kernels import Kernels
from capstan_engine.messages import SamplingParams
from capstan_engine.models.decoder import Decoder
from capstan_engine.runner import scoring
from capstan_engine.runner.batch import Batch, Drawn, Inputs, Rows, begun_blocks, build_batch, padded
from capstan_engine.runner.graphs import Graphs
from capstan_engine.runner.kv_cache import KvCache
from capstan_engine.runner.landing import Findings, landing
from capstan_engine.scheduler.step import ScheduledRequest, StepPlan, StepResult

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
        graphs: Graphs | None,
    ) -> None:
        self.figures = figures
        """What the model takes of memory."""
        self._decoder = decoder
        self._cache = cache
        self._kernels = kernels
        self._dtype = dtype
        self._graphs = graphs
        self._stage = kernels.new_stage()
        self._drawn = Drawn(torch.zeros(1, dtype=torch.int64, device=cache.device), {})

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

    def execute(self, plan: StepPlan) -> StepResult:
        """Launch a step and wait for it."""
        return self.launch(plan)()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        """Give the device a step, behind those that it was given before. The answer waits for the result.

        The plan's tokens are computed, and one is drawn where a request `samples`. Where one is `UNKNOWN`, the step
        launched before this one draws it.
        """
        if not plan:
            return StepResult
        batch = build_batch(plan.scheduled, self._drawn.reference)
        num_rows = None if self._graphs is None else self._graphs.num_rows(batch)
        findings = self._compute(batch) if num_rows is None else self._repeat(batch, num_rows)
        self._drawn = Drawn(findings.tokens, {request.request_id: row for row, request in enumerate(batch.drawing)})
        return landing(findings)

    def warm_up(self, progress: Callable[[], None] = lambda: None) -> None:
        """Run the smaller batch sizes: the first step of each size generates code for its shapes, the second a graph.

        The largest graph comes before all: recorded after smaller ones it would find their memory too small, and so
        would each between. `progress` is called before each size.

        Writes to the first blocks of the cache, so it must come before any request holds them.
        """
        sizes = {self._kernels.round_up(num) for num in range(1, _WARM_UP_TOKENS + 1)}
        if self._graphs is not None:
            sizes.add(max(1, self._graphs.max_sequences))
        for num in sorted(sizes, reverse=True):
            progress()
            for _ in range(1 if self._graphs is None else 2):
                self.execute(StepPlan(tuple(self._dummy(f"{i}", 1) for i in range(num))))
            if num <= self._decoder.num_positions:
                self.execute(StepPlan((self._dummy("0", num),)))

    def try_step(self, num_sequences: int, length: int) -> None:
        """Run a step of so many prompts of this length. Writes to the first blocks, like `warm_up`."""
        self.execute(StepPlan(tuple(self._dummy(f"{i}", length) for i in range(num_sequences))))

    def _dummy(self, request_id: str, length: int) -> ScheduledRequest:
        blocks, ids = block_table(range(-(-length // self.block_size))), [0] * length
        return ScheduledRequest(request_id, ids, 0, blocks, _WARM_UP_PARAMS, True, ids, [])

    def _compute(self, batch: Batch) -> Findings:
        """First all that the device reads, in one copy; then all that it computes."""
        stage, kernels, layout = self._stage, self._kernels, self._cache.layout
        num_rows = kernels.round_up(len(batch.token_ids))
        inputs = Inputs(
            stage.put(padded(batch.token_ids, num_rows)),
            stage.put(padded(batch.positions, num_rows)),
            kernels.plan_attention(batch.spans, layout, self._decoder.windows, self._dtype, stage),
            self._drawn.tokens if batch.refers else None,
        )
        begun = begun_blocks(batch.spans, layout.block_size) if kernels.reads_unused_slots else []
        to_clear = stage.put(np.array(begun, np.int64)) if begun else None

        def rows_of(rows: Sequence[int]) -> Rows:
            wanted = [*rows, *[rows[0]] * (kernels.round_up(len(rows)) - len(rows))]
            all_of_them = wanted == list(range(num_rows))
            return Rows(None if all_of_them else stage.put(np.array(wanted)), len(rows))

        last_rows = rows_of(batch.last_rows) if batch.drawing else None
        draws = kernels.plan_draws(batch.draws, stage)
        score_outputs = scoring.of_outputs(batch.drawing, stage)
        score_prompts = scoring.of_prompts(batch, stage, rows_of)
        stage.send()

        if to_clear is not None:
            self._cache.clear(to_clear)
        hidden = self._decoder.forward(inputs.known_ids(), inputs.positions, self._cache.layers, inputs.plans)

        def logits_of(rows: Rows) -> torch.Tensor:
            some = hidden if rows.chosen is None else hidden.index_select(0, rows.chosen)
            return self._decoder.logits(some)[: rows.num]

        if last_rows is None:
            return Findings((), self._drawn.tokens[:0], [], score_prompts(logits_of))
        logits = logits_of(last_rows)
        tokens = kernels.choose_tokens(logits, draws, self._drawn.tokens)
        return Findings(batch.drawing, tokens, score_outputs(logits, tokens), score_prompts(logits_of))

    def _repeat(self, batch: Batch, num_rows: int) -> Findings:
        """By a graph, and what no graph has in it behind that: other logits are drawn from anew."""
        assert self._graphs is not None
        changes = any(draw.changes_logits for draw in batch.draws)
        draws = self._kernels.plan_draws(batch.draws, self._stage) if changes else None
        score_outputs = scoring.of_outputs(batch.drawing, self._stage)
        self._stage.send()
        left = self._graphs.run(batch, num_rows, self._drawn.tokens)
        tokens = left.tokens if draws is None else self._kernels.choose_tokens(left.logits, draws, left.drawn)
        return Findings(batch.drawing, tokens, score_outputs(left.logits, tokens), [])
