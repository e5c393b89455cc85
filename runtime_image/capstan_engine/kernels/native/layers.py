"""All decoder layers in one call, for steps in which every sequence decodes; what comes of it is equal to the last bit.

Knows addresses, and holds what they belong to. Prompts are left to the parts, one by one: there a call's own time does
not show.
"""

import ctypes
from collections.abc import Mapping, Sequence

import torch

from capstan_engine.kernels.layers import LayerParts
from capstan_engine.kernels.native.attention import VECTOR
from capstan_engine.kernels.native.library import required
from capstan_engine.kernels.native.planning import NativePlan
from capstan_engine.kernels.native.products import Product


class _Layer(ctypes.Structure):
    """As layers.cpp declares it."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "output", "gate_up", "down")),
        *((name, ctypes.c_void_p) for name in ("input_norm", "post_attention_norm", "query_norm", "key_norm")),
        *((name, ctypes.c_int64) for name in ("queries", "keys", "width", "window")),
        *((name, ctypes.c_float) for name in ("eps", "head_eps", "scale")),
    )


class FusedLayers:
    """The layers' weights by their addresses."""

    def __init__(self, layers: Sequence[LayerParts], products: Sequence[Sequence[Product]]) -> None:
        """`products` are those of each layer, in their order."""
        self._held = (tuple(layers), tuple(products))
        self._layers = (_Layer * len(layers))(*map(_described, layers, products))
        self._caches: Sequence[torch.Tensor] = ()
        self._addresses = (ctypes.c_void_p * 0)()

    def __call__(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        caches: Sequence[torch.Tensor],
        plans: Mapping[int | None, NativePlan],
    ) -> bool:
        """As `kernels.layers.FusedLayers` says. All tensors are contiguous."""
        # Where keys lie is the same under every window.
        plan = next(iter(plans.values()))
        if plan.has_chunks:
            return False
        if caches is not self._caches:
            self._caches = caches
            self._addresses = (ctypes.c_void_p * len(caches))(*(cache.data_ptr() for cache in caches))
        required().capstan_layers(
            self._layers,
            len(self._layers),
            x.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            self._addresses,
            ctypes.byref(plan.decodes),
        )
        return True


def fuse_layers(layers: Sequence[LayerParts]) -> FusedLayers | None:
    """None where a part of any is not ours: of another dtype, or heads of an odd width."""
    products = [
        [part for part in (parts.qkv, parts.output, parts.gate_up, parts.down) if isinstance(part, Product)]
        for parts in layers
    ]
    are_ours = all(
        len(of_layer) == 4 and parts.input_norm.dtype is torch.bfloat16 and not parts.head_dim % VECTOR
        for parts, of_layer in zip(layers, products, strict=True)
    )
    return FusedLayers(layers, products) if layers and are_ours else None


def _described(parts: LayerParts, products: Sequence[Product]) -> _Layer:
    norm = parts.qk_norm
    return _Layer(
        *(product.address for product in products),
        parts.input_norm.data_ptr(),
        parts.post_attention_norm.data_ptr(),
        *((None, None) if norm is None else (norm.query.data_ptr(), norm.key.data_ptr())),
        parts.num_heads,
        parts.num_kv_heads,
        parts.head_dim,
        parts.window or 0,
        parts.eps,
        0.0 if norm is None else norm.eps,
        parts.head_dim**-0.5,
    )
