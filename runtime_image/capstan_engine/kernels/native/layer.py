"""A decoder layer in one call, for steps in which every sequence decodes; what comes of it is equal to the last bit.

Knows addresses, and holds what they belong to. Prompts are left to the parts, one by one: there a call's own time does
not show.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from capstan_engine.kernels import reference
from capstan_engine.kernels.layer import LayerParts
from capstan_engine.kernels.native.attention import VECTOR, keys_of
from capstan_engine.kernels.native.library import required
from capstan_engine.kernels.native.products import Product
from capstan_engine.kernels.plan import KvLayout, Span
from capstan_engine.kernels.reference.plan import DecodeGroup, ReferencePlan
from capstan_engine.kernels.stage import Stage


class _Sequences(ctypes.Structure):
    """As layer.cpp declares it."""

    _fields_ = (
        ("first", ctypes.c_int64),
        ("num", ctypes.c_int64),
        ("blocks", ctypes.c_void_p),
        ("blocks_each", ctypes.c_int64),
        ("values", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
    )


class _Layer(ctypes.Structure):
    """As layer.cpp declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_attention_norm", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "width")),
        *((name, ctypes.c_float) for name in ("eps", "head_eps", "scale")),
    )


@dataclass(frozen=True, slots=True)
class NativePlan(ReferencePlan):
    """The same with the addresses of its groups, which are the same in every layer."""

    groups: ctypes.Array[_Sequences]


def plan_attention(
    spans: Sequence[Span], layout: KvLayout, windows: Sequence[int | None], dtype: torch.dtype, stage: Stage
) -> dict[int | None, NativePlan]:
    """As the twin does."""
    plans = reference.plan_attention(spans, layout, windows, dtype, stage)
    return {
        window: NativePlan(plan.num_tokens, plan.slots, plan.decodes, plan.chunks, _addresses(plan.decodes))
        for window, plan in plans.items()
    }


def _addresses(groups: Sequence[DecodeGroup]) -> ctypes.Array[_Sequences]:
    described = (_Sequences(group.first, group.num_sequences, *keys_of(group)) for group in groups)
    return (_Sequences * len(groups))(*described)


class FusedLayer:
    """A layer's weights by their addresses."""

    def __init__(self, parts: LayerParts, products: Sequence[Product]) -> None:
        self._held = (parts, products)
        norm = parts.qk_norm
        heads = (None, None) if norm is None else (norm.query.data_ptr(), norm.key.data_ptr())
        self._layer = _Layer(
            *(product.address for product in products),
            parts.input_norm.data_ptr(),
            parts.post_attention_norm.data_ptr(),
            *heads,
            parts.num_heads,
            parts.num_kv_heads,
            parts.head_dim,
            parts.eps,
            0.0 if norm is None else norm.eps,
            parts.head_dim**-0.5,
        )
        self._address = ctypes.addressof(self._layer)

    def __call__(
        self,
        x: torch.Tensor,
        delta: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: torch.Tensor,
        plan: NativePlan,
    ) -> torch.Tensor | None:
        """As `kernels.layer.FusedLayer` says. `x` and `delta` are contiguous, and `delta` is written over."""
        if plan.chunks:
            return None
        # Padding rows are not computed, but what they hold must be a number.
        left = x.new_zeros(x.shape) if delta is None else delta
        required().capstan_layer(
            self._address,
            x.data_ptr(),
            left.data_ptr(),
            delta is not None,
            plan.num_tokens,
            cos.data_ptr(),
            sin.data_ptr(),
            plan.slots.data_ptr(),
            cache.data_ptr(),
            cache.shape[3],
            plan.groups,
            len(plan.groups),
        )
        return left


def fuse_layer(parts: LayerParts) -> FusedLayer | None:
    """None where a part of it is not ours: of another dtype, or heads of an odd width."""
    products = [part for part in (parts.qkv, parts.output, parts.gate_up, parts.down) if isinstance(part, Product)]
    if len(products) < 4 or parts.input_norm.dtype is not torch.bfloat16 or parts.head_dim % VECTOR:
        return None
    return FusedLayer(parts, products)
