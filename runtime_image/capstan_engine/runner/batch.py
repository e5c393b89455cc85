"""From a plan to the flat tensors of one step.

The order of requests in the batch is ours: single tokens first, longest context first, so that the kernels find them in
one piece and in groups of similar length. A token that the step before draws is not known here: in its place stands a
reference to that step's tokens on the device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from capstan_engine.kernels import AttentionPlan, Draw, Span
from capstan_engine.runner.sampler import draw_of
from capstan_engine.scheduler.step import UNKNOWN, ScheduledRequest


class Drawn(NamedTuple):
    """The tokens of the step before, where it left them."""

    tokens: torch.Tensor
    """int64 `[n]` on the device."""
    rows: Mapping[str, int]
    """By request id."""

    def reference(self, request_id: str) -> int:
        """A negative number that stands for the request's token: -1 for the first of `tokens`, -2 for the second."""
        return -1 - self.rows[request_id]


class Rows(NamedTuple):
    """Some rows of a step's residual stream."""

    chosen: torch.Tensor | None
    """int64 `[num or more]` on the device; None for all rows as they are."""
    num: int


class Inputs(NamedTuple):
    """What the model computes from, on the device. T includes padding rows at the end."""

    token_ids: torch.Tensor
    """int64 `[T]`; padding is token 0 at position 0, and a negative one refers to `drawn`."""
    positions: torch.Tensor
    """int64 `[T]`"""
    plans: Mapping[int | None, AttentionPlan]
    drawn: torch.Tensor | None
    """int64 `[n]`; None where nothing refers to it."""

    def known_ids(self) -> torch.Tensor:
        """`token_ids` with tokens in place of references."""
        if self.drawn is None:
            return self.token_ids
        rows = (-1 - self.token_ids).clamp_(min=0)
        ids = torch.where(self.token_ids < 0, self.drawn.index_select(0, rows), self.token_ids)
        # Where the draw failed there is no token; what is computed behind it will be dropped.
        return ids.clamp_(min=0)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step on the host."""

    requests: tuple[ScheduledRequest, ...]
    first_rows: tuple[int, ...]
    """Row of each request's first token."""
    token_ids: list[int]
    """`[T]` without padding, with references for unknown ones."""
    positions: list[int]
    spans: list[Span]
    drawing: tuple[ScheduledRequest, ...]
    """The requests that get a token."""
    last_rows: tuple[int, ...]
    """Row of the last token of each of them."""
    draws: list[Draw]
    refers: bool
    """Whether anything stands for a token of the step before."""


def build_batch(scheduled: Sequence[ScheduledRequest], reference: Callable[[str], int]) -> Batch:
    """`scheduled` must not be empty. `reference` stands in for tokens that are `UNKNOWN`."""
    requests = tuple(sorted(scheduled, key=_decodes_first))
    token_ids: list[int] = []
    positions: list[int] = []
    first_rows: list[int] = []
    spans: list[Span] = []
    refers = False
    for request in requests:
        start, length = request.start, len(request.token_ids)
        first_rows.append(len(token_ids))
        token_ids += request.token_ids
        if token_ids[-1] == UNKNOWN:
            token_ids[-1] = reference(request.request_id)
            refers = True
        positions += range(start, start + length)
        spans.append(Span(start, length, request.block_table))
    ends = (row + request.num_tokens - 1 for request, row in zip(requests, first_rows, strict=True))
    chosen = [(request, end) for request, end in zip(requests, ends, strict=True) if request.samples]
    drawing = tuple(request for request, _ in chosen)
    return Batch(
        requests,
        tuple(first_rows),
        token_ids,
        positions,
        spans,
        drawing,
        tuple(end for _, end in chosen),
        [draw_of(request, reference) for request in drawing],
        refers,
    )


def padded(numbers: Sequence[int], size: int, value: int = 0) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """int64 `[size]`"""
    filled = np.full(size, value, np.int64)
    filled[: len(numbers)] = numbers
    return filled


def begun_blocks(spans: Sequence[Span], block_size: int) -> list[int]:
    """Blocks that a step begins and does not fill."""
    blocks = []
    for start, length, table in spans:
        end = start + length
        last = (end - 1) // block_size
        if end % block_size and last * block_size >= start:
            blocks.append(table[last])
    return blocks


def _decodes_first(request: ScheduledRequest) -> tuple[bool, int]:
    return len(request.token_ids) > 1, -request.start
