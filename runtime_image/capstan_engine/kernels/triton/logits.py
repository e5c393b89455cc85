"""Penalties and biases on the device: what a request has seen is counted there, not on the host.

The host sends token ids as they are, with repetitions; sorting them out would take it longer than counting takes the
GPU. The counts live for one step.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from capstan_engine.kernels.draw import Draw, Penalties
from capstan_engine.kernels.stage import Stage

_BLOCK = 1024
IN_PROMPT = tl.constexpr(1 << 30)
"""Set in the count of a token that the prompt has; the bits below count the output's."""


class Penalized(NamedTuple):
    """Rows with penalties, m of them, and all ids that count for one of them; on the device."""

    rows: torch.Tensor
    """int32 `[m]`"""
    strengths: torch.Tensor
    """float32 `[m, 3]`: repetition, presence, frequency."""
    ids: torch.Tensor
    """int32 `[k]`; negative ones refer to the tokens of the step before."""
    owners: torch.Tensor
    """int32 `[k]`: 2r for an id in the prompt of row r of `rows`, 2r + 1 for one in its output."""


class Biased(NamedTuple):
    """What is added where, on the device; no token occurs twice in a row."""

    rows: torch.Tensor
    """int32 `[k]`"""
    ids: torch.Tensor
    """int32 `[k]`"""
    values: torch.Tensor
    """float32 `[k]`"""


class Changes(NamedTuple):
    """How some rows of logits differ from the model's."""

    penalized: Penalized | None
    biased: Biased | None


def plan_changes(draws: Sequence[Draw], stage: Stage) -> Changes | None:
    """None where no row asks for any."""
    penalized = [(row, rules.penalties) for row, rules in enumerate(draws) if rules.penalties is not None]
    biases = [(row, token_id, value) for row, rules in enumerate(draws) for token_id, value in rules.bias.items()]
    if not penalized and not biases:
        return None
    return Changes(_plan_penalties(penalized, stage) if penalized else None, _plan_bias(biases, stage))


def _plan_penalties(penalized: Sequence[tuple[int, Penalties]], stage: Stage) -> Penalized:
    every = [penalties for _, penalties in penalized]
    sizes = np.array([(len(p.prompt), len(p.output)) for p in every], np.int32).reshape(-1)
    return Penalized(
        stage.put(np.array([row for row, _ in penalized], np.int32)),
        stage.put(np.array([(p.repetition, p.presence, p.frequency) for p in every], np.float32)),
        stage.put(np.fromiter(chain.from_iterable(chain(p.prompt, p.output) for p in every), np.int32)),
        stage.put(np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)),
    )


def _plan_bias(biases: Sequence[tuple[int, int, float]], stage: Stage) -> Biased | None:
    if not biases:
        return None
    rows, ids, values = zip(*biases, strict=True)
    # Ids that name no token may be too large for the device's numbers.
    bounded = np.clip(np.array(ids), -1, np.iinfo(np.int32).max).astype(np.int32)
    return Biased(stage.put(np.array(rows, np.int32)), stage.put(bounded), stage.put(np.array(values, np.float32)))


def adjusted(logits: torch.Tensor, changes: Changes, drawn: torch.Tensor) -> torch.Tensor:
    """A changed float32 copy of `logits` `[n, V]`. `drawn` int64 are the tokens that negative ids refer to."""
    changed = logits.to(torch.float32, copy=True)
    vocab = logits.shape[1]
    if changes.penalized is not None:
        rows, strengths, ids, owners = changes.penalized
        counts = torch.zeros(len(rows), vocab, dtype=torch.int32, device=logits.device)
        count_kernel[(triton.cdiv(len(ids), _BLOCK),)](counts, ids, owners, drawn, len(ids), VOCAB=vocab, BLOCK=_BLOCK)
        penalize_kernel[(len(rows), triton.cdiv(vocab, _BLOCK))](
            changed, counts, rows, strengths, VOCAB=vocab, BLOCK=_BLOCK
        )
    if changes.biased is not None:
        rows, ids, values = changes.biased
        add_kernel[(triton.cdiv(len(rows), _BLOCK),)](changed, rows, ids, values, len(rows), VOCAB=vocab, BLOCK=_BLOCK)
    return changed


@triton.jit(do_not_specialize=["num"])
def add_kernel(
    logits: tl.tensor,
    rows: tl.tensor,
    ids: tl.tensor,
    values: tl.tensor,
    num: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid `(num / BLOCK,)`: no token occurs twice in a row, and ids that name none are passed over."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids + entry, mask=entry < num, other=-1)
    exists = (token >= 0) & (token < VOCAB)
    row = tl.load(rows + entry, mask=exists, other=0).to(tl.int64)
    target = logits + row * VOCAB + token
    value = tl.load(values + entry, mask=exists, other=0.0)
    tl.store(target, tl.load(target, mask=exists, other=0.0) + value, mask=exists)


@triton.jit(do_not_specialize=["num"])
def count_kernel(
    counts: tl.tensor,
    ids: tl.tensor,
    owners: tl.tensor,
    drawn: tl.tensor,
    num: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid `(num / BLOCK,)`: into `counts` `[m, V]`; ids and owners as in `Penalized`."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids + entry, mask=entry < num, other=VOCAB)
    refers = token < 0
    token = tl.where(refers, tl.load(drawn - 1 - token, mask=refers, other=-1).to(tl.int32), token)
    owner = tl.load(owners + entry, mask=entry < num, other=0)
    known = (token >= 0) & (token < VOCAB)
    target = counts + (owner // 2).to(tl.int64) * VOCAB + token
    tl.atomic_or(target, IN_PROMPT, mask=known & (owner % 2 == 0))
    tl.atomic_add(target, 1, mask=known & (owner % 2 == 1))


@triton.jit
def penalize_kernel(
    logits: tl.tensor,
    counts: tl.tensor,
    rows: tl.tensor,
    strengths: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid `(m, V / BLOCK)`. `strengths` `[m, 3]`: repetition, presence, frequency."""
    index = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < VOCAB
    row = logits + tl.load(rows + index).to(tl.int64) * VOCAB + column
    count = tl.load(counts + index.to(tl.int64) * VOCAB + column, mask=inside, other=0)
    repetition = tl.load(strengths + 3 * index)
    presence = tl.load(strengths + 3 * index + 1)
    frequency = tl.load(strengths + 3 * index + 2)
    value = tl.load(row, mask=inside, other=0.0)
    repeated = tl.where(value > 0, value / repetition, value * repetition)
    value = tl.where(count > 0, repeated, value)
    times = count & (IN_PROMPT - 1)
    value -= frequency * times + tl.where(times > 0, presence, 0.0)
    tl.store(row, value, mask=inside)
