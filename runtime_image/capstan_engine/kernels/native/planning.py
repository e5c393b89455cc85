"""From spans of requests to what compiled attention reads: positions and block tables, by their addresses.

Single queries need neither masks nor copies of their tables. What torch needs, for prompts and for what is not ours, is
worked out when somebody asks for it.
"""

import ctypes
from array import array
from collections.abc import Sequence
from functools import cached_property

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.plan import AttentionPlan, KvLayout, Span
from capstan_engine.kernels.reference.plan import ReferencePlan
from capstan_engine.kernels.stage import Stage


class Decodes(ctypes.Structure):
    """As step.h declares it."""

    _fields_ = (
        ("num", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("tables", ctypes.c_void_p),
        ("num_blocks", ctypes.c_int64),
        ("size", ctypes.c_int64),
    )


class Step:
    """The spans of a step. Their block tables must neither move nor go for as long as it is used."""

    def __init__(
        self,
        spans: Sequence[Span],
        layout: KvLayout,
        windows: Sequence[int | None],
        dtype: torch.dtype,
        stage: Stage,
    ) -> None:
        self._arguments = (spans, layout, windows, dtype, stage)
        singles = [span for span in spans if span.length == 1]
        self._positions = array("q", [span.start for span in singles])
        self._tables = array("q", [span.block_table.buffer_info()[0] for span in singles])
        self.has_chunks = len(singles) < len(spans)
        self.decodes = Decodes(
            len(singles),
            self._positions.buffer_info()[0],
            self._tables.buffer_info()[0],
            layout.num_blocks,
            layout.block_size,
        )

    @cached_property
    def plans(self) -> dict[int | None, ReferencePlan]:
        """As torch needs them."""
        return reference.plan_attention(*self._arguments)


class NativePlan(AttentionPlan):
    """One step under one sliding window (or none)."""

    def __init__(self, step: Step, window: int | None) -> None:
        self._step = step
        self.window = window
        self.decodes = step.decodes
        """The single queries."""
        self.has_chunks = step.has_chunks
        """Whether there are others."""

    @property
    def in_torch(self) -> ReferencePlan:
        """The same for the twin."""
        return self._step.plans[self.window]


def plan_attention(
    spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype, stage: Stage
) -> dict[int | None, NativePlan]:
    """One plan for each of `windows`. Spans of one token must come first, in falling order of `start`."""
    step = Step(spans, layout, windows, dtype, stage)
    return {window: NativePlan(step, window) for window in windows}
