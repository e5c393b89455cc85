"""How weights and activations are rounded to integers, and what the integers stand for: the twins of the fast products.

Pure functions of tensors. The surprising idea: scales are rounded to the dtype that the product reads them in first,
and the weights to them afterwards, so that a format's whole error is in its integers.
"""

import torch

ROWS_AT_ONCE = 1024
"""Rows whose float32 copies are held while rounding: those of a whole vocabulary would outgrow the model."""
_LEVELS = 15
_MIDDLE = 8


def round_channels(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[N, K]` to int8 `[N, K]` and float32 scales `[N]`: symmetric, the largest of each row at 127."""
    largest = torch.linalg.vector_norm(weight, torch.inf, 1).float()
    # Written so that a weight that is not a number leaves a scale that is not one either, and is found out.
    scales = torch.where(largest == 0, 1.0, largest / 127)
    codes = torch.empty_like(weight, dtype=torch.int8)
    chunks = (torch.split(part, ROWS_AT_ONCE) for part in (codes, weight, scales[:, None]))
    for to, rows, by in zip(*chunks, strict=True):
        to.copy_((rows.float() / by).round_())
    return codes, scales


def round_groups(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`[N, K]` to uint8 `[N, K]` of 0..15 and bfloat16 `[K/group_size, N]` twice: scales and middle values.

    Asymmetric: 0 and 15 stand for the least and the greatest weight of the group, 8 for the middle one.
    """
    groups = weight.float().view(len(weight), -1, group_size)  # [N, K/group_size, group_size]
    least, greatest = groups.amin(2), groups.amax(2)
    scales = torch.where(greatest == least, 1.0, (greatest - least) / _LEVELS).bfloat16()
    middles = (least + _MIDDLE * scales).bfloat16()
    codes = ((groups - middles.float()[..., None]) / scales.float()[..., None] + _MIDDLE).round_().clamp_(0, _LEVELS)
    return codes.flatten(1).to(torch.uint8), scales.T.contiguous(), middles.T.contiguous()


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
