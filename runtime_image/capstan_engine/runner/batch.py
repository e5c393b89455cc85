"""From a plan to the flat tensors of one step.

The order of requests in the batch is ours: single tokens first, longest context first, so that the kernels find them in
one piece and in groups of similar length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from capstan_engine.kernels import AttentionPlan, Kernels, KvLayout, Span
from capstan_engine.scheduler.step import ScheduledRequest


@dataclass(frozen=True, slots=True)
class Batch:
    """The input of the model for one step. T includes padding rows at the end."""

    requests: tuple[ScheduledRequest, ...]
    first_rows: tuple[int, ...]
    """Row of each request's first token."""
    token_ids: torch.Tensor
    """int64 `[T]`; padding is token 0 at position 0."""
    positions: torch.Tensor
    """int64 `[T]`"""
    plans: Mapping[int | None, AttentionPlan]
    new_blocks: tuple[int, ...]
    """Blocks that this step begins and does not fill."""


def build_batch(
    scheduled: Sequence[ScheduledRequest],
    kernels: Kernels,
    layout: KvLayout,
    windows: Sequence[int | None],
    dtype: torch.dtype,
    device: str,
) -> Batch:
    """`scheduled` must not be empty."""
    requests = tuple(sorted(scheduled, key=_decodes_first))
    token_ids: list[int] = []
    positions: list[int] = []
    first_rows: list[int] = []
    new_blocks: list[int] = []
    spans: list[Span] = []
    for request in requests:
        start, length = request.start, len(request.token_ids)
        end = start + length
        first_rows.append(len(token_ids))
        token_ids += request.token_ids
        positions += range(start, end)
        spans.append(Span(start, length, request.block_table))
        last_block = (end - 1) // layout.block_size
        if end % layout.block_size and last_block * layout.block_size >= start:
            new_blocks.append(request.block_table[last_block])
    padding = [0] * (kernels.round_up(len(token_ids)) - len(token_ids))
    return Batch(
        requests,
        tuple(first_rows),
        torch.tensor(token_ids + padding, device=device),
        torch.tensor(positions + padding, device=device),
        kernels.plan_attention(spans, layout, windows, dtype),
        tuple(new_blocks),
    )


def _decodes_first(request: ScheduledRequest) -> tuple[bool, int]:
    return len(request.token_ids) > 1, -request.start
