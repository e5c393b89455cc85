"""Penalties and biases on the device: what a request has seen is counted there, not on the host.

The host sends token ids as they are, with repetitions; sorting them out would take it longer than counting takes the
GPU. The counts live for one step.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
import triton
import triton.language as tl

from capstan_engine.kernels.draw import Draw, Penalties
from capstan_engine.kernels.triton.machine import to_device

_BLOCK = 1024
IN_PROMPT = tl.constexpr(1 << 30)
"""Set in the count of a token that the prompt has; the bits below count the output's."""


def adjusted(logits: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """`logits` `[n, V]`, or a changed float32 copy of them where a row asks for it."""
    if not any(rules.changes_logits for rules in draws):
        return logits
    changed = logits.to(torch.float32, copy=True)
    penalized = [(row, rules.penalties) for row, rules in enumerate(draws) if rules.penalties is not None]
    if penalized:
        _penalize(changed, penalized)
    biases = [
        (row, token_id, value)
        for row, rules in enumerate(draws)
        for token_id, value in rules.bias.items()
        if 0 <= token_id < logits.shape[1]
    ]
    if biases:
        rows, ids, values = zip(*biases, strict=True)
        row, token_id, value = to_device(
            [np.array(rows, np.int32), np.array(ids, np.int32), np.array(values, np.float32).view(np.int32)]
        )
        add_kernel[(triton.cdiv(len(rows), _BLOCK),)](
            changed, row, token_id, value.view(torch.float32), len(rows), VOCAB=logits.shape[1], BLOCK=_BLOCK
        )
    return changed


def _penalize(logits: torch.Tensor, penalized: Sequence[tuple[int, Penalties]]) -> None:
    vocab = logits.shape[1]
    every = [penalties for _, penalties in penalized]
    counts = torch.zeros(len(every), vocab, dtype=torch.int32, device=logits.device)
    ids = np.fromiter(chain.from_iterable(chain(p.prompt, p.output) for p in every), np.int32)
    sizes = np.array([(len(p.prompt), len(p.output)) for p in every], np.int32).reshape(-1)
    owners = np.repeat(np.arange(sizes.size, dtype=np.int32), sizes)  # twice the row, and one more in its output
    strengths = np.array([(p.repetition, p.presence, p.frequency) for p in every], np.float32)
    rows, token_ids, owner, strength = to_device(
        [np.array([row for row, _ in penalized], np.int32), ids, owners, strengths.view(np.int32)]
    )
    count_kernel[(triton.cdiv(ids.size, _BLOCK),)](counts, token_ids, owner, ids.size, VOCAB=vocab, BLOCK=_BLOCK)
    penalize_kernel[(len(every), triton.cdiv(vocab, _BLOCK))](
        logits, counts, rows, strength.view(torch.float32), VOCAB=vocab, BLOCK=_BLOCK
    )


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
    """Grid `(num / BLOCK,)`: no token occurs twice in a row."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = entry < num
    row = tl.load(rows + entry, mask=exists, other=0).to(tl.int64)
    target = logits + row * VOCAB + tl.load(ids + entry, mask=exists, other=0)
    value = tl.load(values + entry, mask=exists, other=0.0)
    tl.store(target, tl.load(target, mask=exists, other=0.0) + value, mask=exists)


@triton.jit(do_not_specialize=["num"])
def count_kernel(
    counts: tl.tensor, ids: tl.tensor, owners: tl.tensor, num: tl.tensor, VOCAB: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """Grid `(num / BLOCK,)`. Owner 2r is the prompt of row r of `counts` `[m, V]`, owner 2r + 1 its output."""
    entry = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(ids + entry, mask=entry < num, other=-1)
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
