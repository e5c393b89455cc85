"""Decode steps as recorded graphs: what the host would launch kernel by kernel, the device then repeats by itself.

One graph for each number of rows that decode steps are rounded up to, with sampling inside. Knows neither what is
recorded nor on what kind of device: it is given the model as a function and a recorder. The surprising idea: a step
that is recorded is an ordinary one. The first of a size runs as always, which compiles its kernels; the second is
recorded. Nothing is computed only to prepare, and sizes that never come cost nothing. All record into one pool of
memory, so whoever warms up lets the largest come first: what it computed in is room enough for every other.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from capstan_engine.kernels import Draw, KvLayout, RecordableKernels, Stage
from capstan_engine.runner.batch import Batch, Inputs, padded

_log = logging.getLogger(__name__)

Compute = Callable[[], None]
Recorder = Callable[[Compute], Compute]
"""Records what a function has the device do, without doing it, and returns what repeats it."""

_GREEDY = Draw(0.0, 0, 1.0, 0.0, 0, 0, None, {})
"""What padding rows draw by."""


class Replayed(NamedTuple):
    """What a step of n rows left; valid until the next one runs."""

    logits: torch.Tensor
    """`[n, V]`"""
    tokens: torch.Tensor
    """int64 `[n]`, drawn without penalties and biases."""
    drawn: torch.Tensor
    """int64 `[most rows]`: the tokens of the step before, for whoever draws again."""


@dataclass(slots=True)
class _Size:
    """Steps of one number of rows. Their inputs lie at the same addresses each time."""

    stage: Stage
    has_run: bool = False
    replay: Compute | None = None
    fails: bool = False


class Graphs:
    """The graphs of one model and cache."""

    def __init__(
        self,
        kernels: RecordableKernels,
        logits_of: Callable[[Inputs], torch.Tensor],
        record: Recorder,
        *,
        layout: KvLayout,
        windows: Sequence[int | None],
        max_sequences: int,
        max_context: int,
        out: torch.Tensor,
    ) -> None:
        """`logits_of` gives `[T, V]` for inputs of T rows; `out` `[round_up(max_sequences), V]` receives them."""
        self._kernels = kernels
        self._logits_of = logits_of
        self._record = record
        self._layout = layout
        self._windows = windows
        self.max_sequences = max_sequences
        """Of a step that a graph can serve."""
        self._max_context = max_context
        self._logits = out
        self._tokens = torch.zeros(len(out), dtype=torch.int64, device=out.device)
        self._drawn = torch.zeros_like(self._tokens)
        self._sizes: dict[int, _Size] = {}

    def num_rows(self, batch: Batch) -> int | None:
        """Rows of the graph that serves this step; None where none does."""
        alone = len(batch.drawing) == len(batch.requests) == len(batch.token_ids)
        if not alone or len(batch.requests) > self.max_sequences:
            return None
        num_rows = self._kernels.round_up(len(batch.requests))
        return None if num_rows in self._sizes and self._sizes[num_rows].fails else num_rows

    def run(self, batch: Batch, num_rows: int, drawn: torch.Tensor) -> Replayed:
        """One step of `num_rows(batch)` rows, in which references mean the tokens `drawn`."""
        size = self._sizes.get(num_rows)
        if size is None:
            size = self._sizes[num_rows] = _Size(self._kernels.new_stage())
        stage, num = size.stage, len(batch.requests)
        inputs = Inputs(
            stage.put(padded(batch.token_ids, num_rows)),
            stage.put(padded(batch.positions, num_rows)),
            self._kernels.plan_decodes(batch.spans, self._layout, self._windows, stage, num_rows, self._max_context),
            self._drawn,
        )
        plain = [draw._replace(penalties=None, bias={}) for draw in batch.draws]
        draws = self._kernels.plan_draws([*plain, *[_GREEDY] * (num_rows - num)], stage)
        stage.send()
        if batch.refers:
            self._drawn[: len(drawn)].copy_(drawn)

        def compute() -> None:
            logits = self._logits_of(inputs)
            self._logits[:num_rows].copy_(logits)
            self._tokens[:num_rows].copy_(self._kernels.choose_tokens(logits, draws, self._drawn))

        if size.replay is None and size.has_run and not size.fails:
            size.replay = self._recorded(compute, size, num_rows)
        (size.replay or compute)()
        size.has_run = True
        return Replayed(self._logits[:num], self._tokens[:num], self._drawn)

    def _recorded(self, compute: Compute, size: _Size, num_rows: int) -> Compute | None:
        try:
            return self._record(compute)
        except RuntimeError as error:
            # Among others of torch: not enough memory left, an operation that cannot be recorded.
            size.fails = True
            _log.warning("decode steps of %d rows are launched kernel by kernel, which is slower: %s", num_rows, error)
            return None


class CudaRecorder:
    """CUDA graphs, all of one memory pool: two of them are never at work at once."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            compute()
        return graph.replay
