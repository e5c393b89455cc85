"""Products of bfloat16 activations with weights of 16, 8 and 4 bits. Where they are chosen, so are their twins.

Knows codes and scales, not how they were made. Every tensor is on the CPU.
"""

from typing import Final

import torch
from torch.nn import functional

from capstan_engine.kernels import reference
from capstan_engine.kernels.native.library import library, required
from capstan_engine.kernels.protocol import Linear

__all__ = ["pack_int4", "pack_int8", "pack_linear"]

_BLOCK: Final = 64
"""Outputs that one thread computes together."""
_ROWS_AT_ONCE: Final = 16 * _BLOCK
"""Outputs that are held as wide integers while packing."""


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`weight` `[N, K]`, `bias` `[N]`. What is not bfloat16, or has an odd K, goes to torch."""
    if weight.dtype is not torch.bfloat16 or weight.shape[1] % 2:
        return reference.pack_linear(weight, bias)
    return _Plain(weight, bias)


def pack_int8(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Linear | None:
    """int8 `[N, K]` and float32 `[N]`: `x @ (codes · scales)ᵀ + bias`. None without the library, or for an odd K."""
    if library() is None or codes.shape[1] % 2:
        return None
    return _Int8(codes, scales, bias)


def pack_int4(
    codes: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor, bias: torch.Tensor | None
) -> Linear | None:
    """Integers 0..15 `[N, K]`, bfloat16 `[K/group, N]` twice: `x @ ((codes - 8) · scales + middles)ᵀ + bias`.

    None without the library. Groups are multiples of 16 inputs.
    """
    return None if library() is None else _Int4(codes, scales, middles, bias)


class _Plain:
    """The library is given addresses, so the tensors are held here for as long as they may be called with."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._num_outputs, self._num_inputs = weight.shape
        self._weight = _pairs(weight)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, out = x.contiguous(), x.new_empty(x.shape[0], self._num_outputs)
        required().capstan_bf16(
            x.data_ptr(),
            x.shape[0],
            self._num_inputs,
            self._num_outputs,
            self._weight.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
        )
        return out


class _Int8:
    """As `_Plain`, with a scale for each output."""

    def __init__(self, codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._num_outputs, self._num_inputs = codes.shape
        self._codes = _pairs(codes)
        self._scales = scales
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, out = x.contiguous(), x.new_empty(x.shape[0], self._num_outputs)
        required().capstan_int8(
            x.data_ptr(),
            x.shape[0],
            self._num_inputs,
            self._num_outputs,
            self._codes.data_ptr(),
            self._scales.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
        )
        return out


class _Int4:
    """As `_Int8`, with a scale and a middle value for each group."""

    def __init__(
        self, codes: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self._num_outputs, self._num_inputs = codes.shape
        self._group_size = self._num_inputs // len(scales)
        self._codes = torch.cat([_lanes(rows) for rows in torch.split(codes, _ROWS_AT_ONCE)])  # [N/64, K/8, 4, 16, 2]
        self._scales = _by_block(scales)
        self._middles = _by_block(middles)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, out = x.contiguous(), x.new_empty(x.shape[0], self._num_outputs)
        required().capstan_int4(
            x.data_ptr(),
            x.shape[0],
            self._num_inputs,
            self._num_outputs,
            self._group_size,
            self._codes.data_ptr(),
            self._scales.data_ptr(),
            self._middles.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            out.data_ptr(),
        )
        return out


def _pairs(weight: torch.Tensor) -> torch.Tensor:
    """`[N, K]` to `[N/64, K/2, 64, 2]`."""
    num_pairs = weight.shape[1] // 2
    pair = {1: torch.int16, 2: torch.int32}[weight.itemsize]
    blocks = _padded(weight).view(pair).view(-1, _BLOCK, num_pairs)
    packed = blocks.new_empty(len(blocks), num_pairs, _BLOCK)
    # One matrix at a time: torch transposes a matrix tile by tile, and three dimensions element by element.
    for to, block in zip(packed, blocks, strict=True):
        to.copy_(block.T)
    return packed.view(weight.dtype).view(-1, num_pairs, _BLOCK, 2)


def _lanes(codes: torch.Tensor) -> torch.Tensor:
    """0..15 `[N, K]` to int16 `[N/64, K/8, 4, 16, 2]`: 16 outputs and two inputs each, four pairs to a lane."""
    eights = _padded(codes.to(torch.int16)).view(-1, 4, 16, codes.shape[1] // 8, 4, 2)
    shifted = eights << torch.tensor([0, 4, 8, 12], dtype=torch.int16)[:, None]
    return shifted.sum(4, dtype=torch.int16).permute(0, 3, 1, 2, 4).contiguous()


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """With rows of zeros up to a whole block; as they are where they fill it."""
    missing = -len(rows) % _BLOCK
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows.contiguous()


def _by_block(values: torch.Tensor) -> torch.Tensor:
    """`[K/group, N]` to `[N/64, K/group, 64]`, padded."""
    padded = functional.pad(values, (0, -values.shape[1] % _BLOCK))
    return padded.view(len(values), -1, _BLOCK).transpose(0, 1).contiguous()
