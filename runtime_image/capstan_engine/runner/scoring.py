"""Which log probabilities a step is asked for: row numbers staged before it is launched, scores computed behind it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from capstan_engine.kernels.stage import Stage
from capstan_engine.runner.batch import Batch, Rows
from capstan_engine.runner.landing import Scored
from capstan_engine.runner.logprobs import score
from capstan_engine.scheduler.step import ScheduledRequest

_SLICE = 256
"""Prompt positions whose logits are held at once."""


def of_outputs(
    drawing: Sequence[ScheduledRequest], stage: Stage
) -> Callable[[torch.Tensor, torch.Tensor], list[Scored]]:
    """To be called with logits `[n or more, V]` and tokens `[n]` of `drawing`."""
    asked = [
        (row, request.request_id, request.params.logprobs)
        for row, request in enumerate(drawing)
        if request.params.logprobs is not None
    ]
    if not asked:
        return lambda _logits, _tokens: []
    rows, request_ids, counts = (list(column) for column in zip(*asked, strict=True))
    index = stage.put(np.array(rows))

    def scored(logits: torch.Tensor, tokens: torch.Tensor) -> list[Scored]:
        found = score(logits.index_select(0, index), tokens.index_select(0, index), max(counts))
        return [Scored(request_ids, counts, found)]

    return scored


def of_prompts(
    batch: Batch, stage: Stage, rows_of: Callable[[Sequence[int]], Rows]
) -> Callable[[Callable[[Rows], torch.Tensor]], list[Scored]]:
    """To be called with what gives the logits of some rows. The row at position p predicts the prompt's token p + 1."""
    slices: list[tuple[str, int, torch.Tensor, Rows]] = []
    for request, first_row in zip(batch.requests, batch.first_rows, strict=True):
        num, first = request.params.prompt_logprobs, request.start + 1
        if num is None:
            continue
        ids = request.prompt_token_ids[first : first + len(request.token_ids)]
        for offset in range(0, len(ids), _SLICE):
            part = ids[offset : offset + _SLICE]
            rows = rows_of(range(first_row + offset, first_row + offset + len(part)))
            slices.append((request.request_id, num, stage.put(np.array(part)), rows))

    def scored(logits_of: Callable[[Rows], torch.Tensor]) -> list[Scored]:
        return [
            Scored([request_id] * len(ids), [num] * len(ids), score(logits_of(rows), ids, num))
            for request_id, num, ids, rows in slices
        ]

    return scored
