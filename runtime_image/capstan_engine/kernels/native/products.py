"""Products of bfloat16 activations with weights of 16, 8 and 4 bits. Where they are chosen, so are their twins.

Knows codes and scales, not how they were made. Every tensor is on the CPU.

Low-bit products are sums of integers, which is what makes them fast: activations are rounded in groups of inputs with a
scale each, to 16 bits where only the weights are meant to be rounded (a bfloat16 has 8 significant ones) and to 8 bits
otherwise.
"""

import ctypes
from typing import Any, Final

import torch
from torch.nn import functional

from capstan_engine.kernels import reference
from capstan_engine.kernels.native.coding import code
from capstan_engine.kernels.native.library import library, required
from capstan_engine.kernels.protocol import Linear

__all__ = ["Product", "pack_int4", "pack_int8", "pack_int8_dynamic", "pack_linear", "pack_uncoded"]

_BLOCK: Final = 64
"""Outputs that one thread computes together."""


def pack_linear(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """`weight` `[N, K]`, `bias` `[N]`. What is not bfloat16, or has an odd K, goes to torch.

    Weights are held in 12 bits, exactly, unless their exponents are too many for that.
    """
    if weight.dtype is not torch.bfloat16 or weight.shape[1] % 2:
        return reference.pack_linear(weight, bias)
    weight = weight.contiguous()
    coded = code(weight)
    if coded is None:
        return pack_uncoded(weight, bias)
    return Product(required().capstan_bf16_coded, weight.shape, bias, **coded._asdict())


def pack_uncoded(weight: torch.Tensor, bias: torch.Tensor | None) -> Linear:
    """A contiguous bfloat16 `[N, K]`, K even, in 16 bits."""
    return Product(required().capstan_bf16, weight.shape, bias, _by_words(weight.view(torch.uint8)))


def pack_int8(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Linear | None:
    """int8 `[N, K]` and float32 `[N]`: `x @ (codes · scales)ᵀ + bias`. None without the library.

    Groups of 128 activations are rounded to 16 bits.
    """
    found = library()
    if found is None:
        return None
    words = _by_words(_wide(codes, 2).view(torch.uint8), 2)
    return Product(found.capstan_int8, codes.shape, bias, words, scales)


def pack_int8_dynamic(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> Linear | None:
    """The same, with groups of 128 activations rounded to 8 bits."""
    found = library()
    if found is None:
        return None
    words = _by_words(_wide(codes, 4).view(torch.uint8) ^ 128)
    return Product(found.capstan_int8_dynamic, codes.shape, bias, words, scales)


def pack_int4(
    codes: torch.Tensor, scales: torch.Tensor, middles: torch.Tensor, bias: torch.Tensor | None
) -> Linear | None:
    """Integers 0..15 `[N, K]`, bfloat16 `[K/group, N]` twice: `x @ ((codes - 8) · scales + middles)ᵀ + bias`.

    None without the library. Activations are rounded to 8 bits in the groups: multiples of 16 inputs, up to 512.
    """
    found = library()
    if found is None:
        return None
    low, high = codes.view(len(codes), -1, 2, 4).unbind(2)
    words = _by_words((high << 4).bitwise_or_(low).flatten(1))
    group_size = codes.shape[1] // len(scales)
    return Product(found.capstan_int4, codes.shape, bias, words, _by_block(scales), _by_block(middles), group_size)


class _Linear(ctypes.Structure):
    """As blocks.h declares it."""

    _fields_ = (
        ("multiply", ctypes.c_void_p),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("bias", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("middles", ctypes.c_void_p),
        ("group", ctypes.c_int64),
        ("starts", ctypes.c_void_p),
        ("rare", ctypes.c_void_p),
    )


class Product:
    """A function of the library with all of its arguments but the activations and the place for the result.

    It is given addresses, so the tensors are held here for as long as they may be called with.
    """

    def __init__(
        self,
        function: Any,
        shape: torch.Size,
        bias: torch.Tensor | None,
        weights: torch.Tensor,
        scales: torch.Tensor | None = None,
        middles: torch.Tensor | None = None,
        group_size: int = 0,
        starts: torch.Tensor | None = None,
        rare: torch.Tensor | None = None,
    ) -> None:
        self._multiply = function
        self._num_outputs, num_inputs = shape
        self._held = (bias, weights, scales, middles, starts, rare)
        *numbers, first, last = (None if tensor is None else tensor.data_ptr() for tensor in self._held)
        start = ctypes.cast(function, ctypes.c_void_p)
        self._linear = _Linear(start, num_inputs, self._num_outputs, *numbers, group_size, first, last)
        self.address: Final = ctypes.addressof(self._linear)
        """Of the `Linear` that the library's functions take, for as long as this is held."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x, rows = x.contiguous(), x.shape[0]
        out = x.new_empty(rows, self._num_outputs)
        self._multiply(self.address, x.data_ptr(), rows, out.data_ptr())
        return out


def _by_words(rows: torch.Tensor, size: int = 4) -> torch.Tensor:
    """Bytes `[N, words · size]` to `[N/64, words, 64, size]`, with rows of zeros up to a whole block."""
    word = {2: torch.int16, 4: torch.int32}[size]
    missing = -len(rows) % _BLOCK
    blocks = (functional.pad(rows, (0, 0, 0, missing)) if missing else rows.contiguous()).view(word)
    blocks = blocks.view(-1, _BLOCK, blocks.shape[1])
    packed = blocks.new_empty(len(blocks), blocks.shape[2], _BLOCK)
    # One matrix at a time: torch transposes a matrix tile by tile, and three dimensions element by element.
    for to, block in zip(packed, blocks, strict=True):
        to.copy_(block.T)
    return packed


def _wide(codes: torch.Tensor, multiple: int) -> torch.Tensor:
    """With columns up to a multiple. What they hold does not matter: the activations they meet are zeros."""
    missing = -codes.shape[1] % multiple
    return functional.pad(codes, (0, missing)) if missing else codes


def _by_block(values: torch.Tensor) -> torch.Tensor:
    """`[K/group, N]` to `[N/64, K/group, 64]`, padded."""
    padded = functional.pad(values, (0, -values.shape[1] % _BLOCK))
    return padded.view(len(values), -1, _BLOCK).transpose(0, 1).contiguous()
