"""Choosing tokens on the device: nothing comes back to the host but the tokens, when it asks for them.

One program has a row and goes over it as often as it must; a greedy row once. No sort: the weight below which tokens
are dropped is searched for between 0 and 1 by halving, or rather ninthing, the range of its bit patterns, which are
ordered as the numbers are. So top-k and top-p are exact in few passes, and ties stay together as in the reference.
The draw is the reference's too, an inverse CDF in vocabulary order from the same random number.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl

from capstan_engine.kernels.draw import Draw
from capstan_engine.kernels.stage import Stage
from capstan_engine.kernels.triton.logits import Changes, adjusted, plan_changes

_BLOCK = 2048
_PIVOTS = 8
_NUM_WARPS = 16

ABOVE_ONE = tl.constexpr(0x3F800001)
"""The bits of the smallest float32 above 1, the largest weight."""


class TritonDraws(NamedTuple):
    """The rules of n rows, on the device."""

    numbers: torch.Tensor
    """float32 `[n, 2]`: temperature and min-p."""
    dropped: torch.Tensor
    """float64 `[n]`: 1 - top-p."""
    most: torch.Tensor
    """int32 `[n]`: top-k."""
    counters: torch.Tensor
    """int64 `[n, 2]`: seed and position."""
    changes: Changes | None


def plan_draws(draws: Sequence[Draw], stage: Stage) -> TritonDraws:
    """Wide enough for 1 - top_p, which the host computes, and for seeds of 64 bits."""
    keys = np.array([(rules.seed & 0xFFFFFFFFFFFFFFFF, rules.position) for rules in draws], np.uint64)
    return TritonDraws(
        stage.put(np.array([(rules.temperature, rules.min_p) for rules in draws], np.float32)),
        stage.put(np.array([1 - rules.top_p for rules in draws], np.float64)),
        stage.put(np.array([rules.top_k for rules in draws], np.int32)),
        stage.put(keys.view(np.int64)),
        plan_changes(draws, stage),
    )


def choose_tokens(logits: torch.Tensor, draws: TritonDraws, drawn: torch.Tensor) -> torch.Tensor:
    """int64 `[n]` on the device; `logits` are `[n, V]`, contiguous. The host does not wait."""
    if draws.changes is not None:
        logits = adjusted(logits, draws.changes, drawn)
    num_rows = draws.most.shape[0]
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    choose_kernel[(num_rows,)](
        logits,
        draws.numbers,
        draws.dropped,
        draws.most,
        draws.counters,
        tokens,
        VOCAB=logits.shape[1],
        BLOCK=min(_BLOCK, triton.next_power_of_2(logits.shape[1])),
        PIVOTS=_PIVOTS,
        num_warps=_NUM_WARPS,
    )
    return tokens


@triton.jit
def choose_kernel(
    logits: tl.tensor,
    numbers: tl.tensor,
    dropped: tl.tensor,
    most: tl.tensor,
    counters: tl.tensor,
    tokens: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
) -> None:
    """Grid `(n,)`. Shapes as in `TritonDraws`."""
    index = tl.program_id(0)
    row = logits + index.to(tl.int64) * VOCAB
    largest, token, finite = _most_likely(row, VOCAB, BLOCK)
    temperature = tl.load(numbers + 2 * index)
    top_k = tl.load(most + index)
    if finite == 0:
        token = -1
    elif (temperature > 0) & (top_k != 1):
        threshold = tl.load(numbers + 2 * index + 1)
        if (top_k > 0) & (top_k < VOCAB):
            kept = _threshold(
                row, largest, temperature, 0.0, (VOCAB - top_k).to(tl.float64), True, VOCAB, BLOCK, PIVOTS
            )
        else:
            kept = threshold * 0
        share = tl.load(dropped + index)
        if share > 0:
            whole = _sum(row, largest, temperature, kept, VOCAB, BLOCK)
            kept = _threshold(row, largest, temperature, kept, share * whole, False, VOCAB, BLOCK, PIVOTS)
        threshold = tl.maximum(threshold, kept)
        whole = _sum(row, largest, temperature, threshold, VOCAB, BLOCK)
        target = _uniform(tl.load(counters + 2 * index), tl.load(counters + 2 * index + 1)) * whole
        token = _locate(row, largest, temperature, threshold, target, VOCAB, BLOCK)
    tl.store(tokens + index, token)


@triton.jit
def _most_likely(row: tl.tensor, VOCAB: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The largest logit, the first token that has it, and whether it is finite and nothing is NaN."""
    lane = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    where = lane
    bad = tl.zeros([BLOCK], tl.int32)
    for first in range(0, VOCAB, BLOCK):
        column = first + lane
        logit = tl.load(row + column, mask=column < VOCAB, other=float("-inf")).to(tl.float32)
        bad = bad | (logit != logit).to(tl.int32)
        where = tl.where(logit > best, column, where)
        best = tl.maximum(best, logit)
    largest = tl.max(best, 0)
    token = tl.min(tl.where(best == largest, where, VOCAB), 0)
    finite = (tl.max(bad, 0) == 0) & (largest > float("-inf")) & (largest < float("inf"))
    return largest, token, finite.to(tl.int32)


@triton.jit
def _weights(
    row: tl.tensor,
    column: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    threshold: tl.tensor,
    VOCAB: tl.constexpr,
) -> tl.tensor:
    """Of some columns, relative to the largest; 0 below the threshold and outside of the vocabulary."""
    logit = tl.load(row + column, mask=column < VOCAB, other=float("-inf")).to(tl.float32)
    # The largest goes first: a tiny temperature must not overflow.
    weight = tl.exp(tl.div_rn(logit - largest, temperature))
    return tl.where(weight >= threshold, weight, 0.0)


@triton.jit
def _threshold(
    row: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    floor: tl.tensor,
    target: tl.tensor,
    COUNTS: tl.constexpr,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
    PIVOTS: tl.constexpr,
) -> tl.tensor:
    """The largest number below which the weights, those under `floor` being 0, sum to at most `target`.

    With `COUNTS` they are counted instead of summed. This number is always one of the weights.
    """
    lane = tl.arange(0, BLOCK)
    pivot = tl.arange(0, PIVOTS) + 1
    low = tl.full([], 0, tl.int32)
    high = tl.full([], ABOVE_ONE, tl.int32)
    while high - low > 1:
        step = (high - low + PIVOTS) // (PIVOTS + 1)
        bits = low + step * pivot
        below = tl.zeros([PIVOTS, BLOCK], tl.float32)
        for first in range(0, VOCAB, BLOCK):
            column = first + lane
            weight = _weights(row, column, largest, temperature, floor, VOCAB)
            measure = (column < VOCAB).to(tl.float32) if COUNTS else weight
            is_below = weight.to(tl.int32, bitcast=True)[None, :] < bits[:, None]
            below += tl.where(is_below, measure[None, :], 0.0)
        passed = tl.sum((tl.sum(below, 1).to(tl.float64) <= target).to(tl.int32), 0)
        high = tl.minimum(high, low + step * (passed + 1))
        low += step * passed
    return low.to(tl.float32, bitcast=True)


@triton.jit
def _sum(
    row: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    threshold: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Of all weights, block after block as `_locate` adds them."""
    total = tl.full([], 0.0, tl.float64)
    for first in range(0, VOCAB, BLOCK):
        column = first + tl.arange(0, BLOCK)
        total += tl.sum(_weights(row, column, largest, temperature, threshold, VOCAB).to(tl.float64), 0)
    return total


@triton.jit
def _locate(
    row: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    threshold: tl.tensor,
    target: tl.tensor,
    VOCAB: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The first column at which the running sum of weights exceeds `target`. Never one of weight 0."""
    token = tl.full([], -1, tl.int32)
    total = tl.full([], 0.0, tl.float64)
    for first in range(0, VOCAB, BLOCK):
        column = first + tl.arange(0, BLOCK)
        weight = _weights(row, column, largest, temperature, threshold, VOCAB)
        before = total
        total += tl.sum(weight.to(tl.float64), 0)
        if (token < 0) & (total > target):
            reached = before + tl.cumsum(weight.to(tl.float64), 0) > target
            # By rounding the running sum may end below the block's: then it is the last one that has a weight.
            last = tl.max(tl.where(weight > 0, column, -1), 0)
            token = tl.minimum(last, tl.min(tl.where(reached, column, VOCAB), 0))
    return token


@triton.jit
def _uniform(seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """As `kernels.philox.uniforms`."""
    first, second, _, _ = tl.philox(seed, position.to(tl.uint32), (position >> 32).to(tl.uint32), 0, 0)
    return (first >> 6).to(tl.float64) * 2.0**-26 + (second >> 6).to(tl.float64) * 2.0**-52
