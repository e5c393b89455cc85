"""Choosing tokens, vectorized over the rows of a step; a row that needs nothing pays nothing.

The surprising idea: tokens are never put into probability order, only weights are. All filters of a row come down to
one threshold, so ties are kept together and the draw, an inverse CDF in vocabulary order, cannot depend on how a sort
broke them. Weights are `exp(logit - largest)` and are never normalized: the largest is exactly 1.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional

from capstan_engine.kernels.draw import Draw, Penalties
from capstan_engine.kernels.philox import uniforms
from capstan_engine.kernels.stage import Stage

_CHUNK = 64
"""Cumulative sums are made of whole chunks first: a vocabulary has no running total worth its memory traffic."""
_BELOW_ONE = 1 - 2.0**-52


def plan_draws(draws: Sequence[Draw], stage: Stage) -> Sequence[Draw]:
    """The rules as they are: they are read on the host."""
    return draws


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw], drawn: torch.Tensor) -> torch.Tensor:
    """int64 `[n]`: a token id for each row of `logits` `[n, V]`; -1 where the row is not finite."""
    tokens = _most_likely(logits)
    rows = [i for i, d in enumerate(draws) if tokens[i] >= 0 and (d.changes_logits or not d.is_greedy)]
    if rows:
        chosen = _choose(logits[rows].float(), [draws[i] for i in rows], drawn)
        for i, token in zip(rows, chosen, strict=True):
            tokens[i] = token
    return torch.tensor(tokens)


def _most_likely(logits: torch.Tensor) -> list[int]:
    """Each row's argmax; -1 where the largest value is NaN (which counts as largest) or infinite."""
    largest, ids = logits.max(-1)
    pairs = zip(ids.tolist(), largest.tolist(), strict=True)
    return [token_id if math.isfinite(value) else -1 for token_id, value in pairs]


def _choose(logits: torch.Tensor, draws: Sequence[Draw], drawn: torch.Tensor) -> list[int]:
    """`logits` float32 `[n, V]` are changed in place."""
    for row, rules in zip(logits, draws, strict=True):
        if rules.penalties is not None:
            penalize(row, _resolved(rules.penalties, drawn))
        if rules.bias:
            _add(row, rules.bias)
    tokens = _most_likely(logits)
    rows = [i for i, d in enumerate(draws) if tokens[i] >= 0 and not d.is_greedy]
    if rows:
        for i, token in zip(rows, draw(logits[rows], [draws[i] for i in rows]), strict=True):
            tokens[i] = token
    return tokens


def _resolved(penalties: Penalties, drawn: torch.Tensor) -> Penalties:
    """With tokens in place of references; one that could not be drawn is none."""
    if not any(token < 0 for token in penalties.output[-1:]):
        return penalties
    *known, reference = penalties.output
    last = int(drawn[-1 - reference])
    return penalties._replace(output=[*known, last] if last >= 0 else known)


def penalize(logits: torch.Tensor, penalties: Penalties) -> None:
    """One row `[V]` in place: repetition over prompt and output, then frequency and presence over the output."""
    if penalties.repetition != 1:
        seen = torch.tensor(list({*penalties.prompt, *penalties.output}), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
    if penalties.output and (penalties.presence or penalties.frequency):
        output = torch.tensor(penalties.output, device=logits.device)
        ids, counts = torch.unique(output, return_counts=True)
        logits[ids] -= penalties.frequency * counts + penalties.presence


def _add(logits: torch.Tensor, bias: Mapping[int, float]) -> None:
    inside = {token_id: value for token_id, value in bias.items() if 0 <= token_id < logits.shape[0]}
    if inside:
        logits[list(inside)] += torch.tensor(list(inside.values()), device=logits.device)


def draw(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token for each row of float32 `logits` `[n, V]`, whose largest values are finite."""
    # The largest goes first: a tiny temperature must not overflow.
    weights = logits - logits.amax(-1, keepdim=True)
    weights.div_(_column([d.temperature for d in draws], weights)).exp_()
    if any(d.top_k or d.top_p < 1 or d.min_p for d in draws):
        weights.mul_(weights >= _thresholds(weights, draws))  # several times faster than masked_fill
    fractions = torch.from_numpy(uniforms([d.seed for d in draws], [d.position for d in draws])).unsqueeze(1)
    tokens: list[int] = _locate(weights, fractions).squeeze(1).tolist()
    return tokens


def _thresholds(weights: torch.Tensor, draws: Sequence[Draw]) -> torch.Tensor:
    """The smallest weight that each row keeps, `[n, 1]`."""
    thresholds = _column([d.min_p for d in draws], weights)
    rows = [i for i, d in enumerate(draws) if d.top_k or d.top_p < 1]
    if not rows:
        return thresholds
    size = weights.shape[-1]
    ordered = _ascending(weights[rows])
    if any(draws[i].top_k for i in rows):
        kth = torch.tensor([[max(size - (draws[i].top_k or size), 0)] for i in rows], device=weights.device)
        ordered.mul_(ordered >= ordered.gather(1, kth))
    # The most likely tokens with share p are the others of the least likely ones with share 1 - p.
    last = _locate(ordered, _column([1 - draws[i].top_p for i in rows], weights, torch.float64))
    thresholds[rows] = torch.maximum(thresholds[rows], ordered.gather(1, last))
    return thresholds


def _ascending(rows: torch.Tensor) -> torch.Tensor:
    """Each row sorted. NumPy's vectorized sort is some 30 times faster than torch's on CPU."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.numpy(), axis=-1))
    return rows.sort(-1).values


def _locate(weights: torch.Tensor, fractions: torch.Tensor) -> torch.Tensor:
    """`[n, 1]`: the first index at which a row's cumulative weight exceeds `fractions` `[n, 1]` of the whole.

    Never an index of weight 0. Fractions are float64 in [0, 1); so are all sums.
    """
    rows, size = weights.shape
    chunks = functional.pad(weights, (0, -size % _CHUNK)).view(rows, -1, _CHUNK)
    totals = chunks.sum(-1, dtype=torch.float64).cumsum(-1)  # [n, chunks]
    targets = fractions * totals[:, -1:]
    index = torch.searchsorted(totals, targets, right=True)
    before = torch.where(index > 0, totals.gather(1, (index - 1).clamp_(min=0)), 0.0)
    inside = chunks[torch.arange(rows, device=weights.device), index.squeeze(1)].cumsum(-1, dtype=torch.float64)
    # Inside the chunk by its share, so that rounding cannot lead out of it.
    share = ((targets - before) / (totals.gather(1, index) - before)).clamp_(0, _BELOW_ONE)
    return index * _CHUNK + torch.searchsorted(inside, share * inside[:, -1:], right=True)


def _column(values: Sequence[float], like: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """One value for each row, `[n, 1]`."""
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device).unsqueeze(1)
