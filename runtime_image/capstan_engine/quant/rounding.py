"""How weights and activations are rounded to integers, and what the integers stand for: the twins of the fast products.

Pure functions of tensors. The surprising idea: scales are rounded to the dtype that the product reads them in first,
and the weights to them afterwards, so that a format's whole error is in its integers.
"""

from collections.abc import Iterator

import torch

_NUMBERS_AT_ONCE = 1 << 18
"""Weights whose float32 copies are held while rounding: those of a whole matrix would outgrow what is read and made."""
_LEVELS = 15
_MIDDLE = 8


def round_channels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, K]` to int8 `[N, K]` and float32 scales `[N]`: symmetric, the largest of each row at 127."""
    largest = torch.linalg.vector_norm(weight, torch.inf, 1).float()
    # Written so that a weight that is not a number leaves a scale that is not one either, and is found out.
    scales = torch.where(largest == 0, 1.0, largest / 127)
    codes = torch.empty_like(weight, dtype=torch.int8)
    for rows, to, by in _in_pieces(weight, codes, scales[:, None]):
        to.copy_(rows.to(torch.float32, copy=True).div_(by).round_())
    return codes, scales


def round_groups(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`[N, K]` to uint8 `[N, K]` of 0..15 and bfloat16 `[K/group_size, N]` twice: scales and middle values.

    Asymmetric: 0 and 15 stand for the least and the greatest weight of the group, 8 for the middle one.
    """
    codes = torch.empty_like(weight, dtype=torch.uint8)
    shape = (weight.shape[1] // group_size, weight.shape[0])
    scales, middles = (weight.new_empty(shape, dtype=torch.bfloat16) for _ in range(2))
    for rows, to, by, middle in _in_pieces(weight, codes, scales.T, middles.T):
        groups = rows.to(torch.float32, copy=True).view(len(rows), -1, group_size)  # [rows, K/group_size, group_size]
        least, greatest = groups.aminmax(dim=2)
        by.copy_(torch.where(greatest == least, 1.0, (greatest - least) / _LEVELS))
        middle.copy_(least + _MIDDLE * by)
        groups.sub_(middle.float()[..., None]).div_(by.float()[..., None])
        to.copy_(groups.add_(_MIDDLE).round_().clamp_(0, _LEVELS).flatten(1))
    return codes, scales, middles


def _in_pieces(weight: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Some rows of a weight `[N, K]` and of what belongs to them, `[N, …]` each, at a time."""
    num_rows = max(1, _NUMBERS_AT_ONCE // weight.shape[1])
    return zip(*(torch.split(part, num_rows) for part in (weight, *others)), strict=True)


def widen_groups(codes: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor) -> torch.Tensor:
    """What `round_groups` stands for, float32 `[N, K]`."""
    by, middle = scales.float().T, middles.float().T
    groups = codes.float().view(*by.shape, -1) - _MIDDLE
    wide: torch.Tensor = groups * by[..., None] + middle[..., None]
    return wide.flatten(1)


def round_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[T, K]` to uint8 `[T, K]` around 128 and float32 `[T, 1]`, the largest of each row: `(u - 128) · largest / 127`.

    Each row by itself, so that no request changes what another one gets.
    """
    wide = x.float()
    # The floor keeps a row of zeros from 0 / 0; it is far below what bfloat16 activations are.
    largest = torch.linalg.vector_norm(wide, torch.inf, -1, keepdim=True).clamp_min_(1e-30)
    # Conversion to an integer cuts off, and what it cuts is positive: adding a half first rounds.
    return torch.addcdiv(wide.new_tensor(128.5), wide, largest, value=127).to(torch.uint8), largest
