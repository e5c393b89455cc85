"""The one decoder. It asks the spec for facts and never for the model's name.

Knows nothing of requests or sampling: flat tokens in, hidden states out, keys and values into a paged cache.
"""

from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional

from capstan_engine.kernels import AttentionPlan, Kernels, LayerParts, Linear, fuses
from capstan_engine.models.layers import DecoderLayer
from capstan_engine.models.rope import rope_tables
from capstan_engine.models.spec import ModelSpec


class Decoder:
    """A model with its weights, ready to compute."""

    def __init__(
        self,
        spec: ModelSpec,
        kernels: Kernels,
        *,
        embedding: torch.Tensor,
        layers: Sequence[LayerParts],
        norm: torch.Tensor,
        head: Linear,
        num_positions: int,
    ) -> None:
        """`embedding` is `[V, M]`; rotary tables are made for `num_positions`."""
        self.spec = spec
        self._kernels = kernels
        self._embedding = embedding
        self._layers = [DecoderLayer(kernels, parts) for parts in layers]
        self._fused = kernels.fuse_layers(layers) if fuses(kernels) else None
        self._norm = norm
        self._head = head
        self.num_positions = num_positions
        cos, sin = rope_tables(spec.rope, spec.head_dim, num_positions, embedding.dtype)
        self._cos, self._sin = cos.to(embedding.device), sin.to(embedding.device)

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The distinct sliding windows of the layers; None is full attention."""
        return tuple(dict.fromkeys(self.spec.windows))

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        caches: Sequence[torch.Tensor],
        plans: Mapping[int | None, AttentionPlan],
    ) -> torch.Tensor:
        """int64 `[T]` ids and positions to the last layer's residual stream `[T, M]`. `caches`: one per layer."""
        x = functional.embedding(token_ids, self._embedding)
        if self._fused is not None and self._fused(x, self._cos, self._sin, caches, plans):
            return x
        cos, sin = self._cos.index_select(0, positions), self._sin.index_select(0, positions)
        delta = None
        for layer, cache in zip(self._layers, caches, strict=True):
            delta = layer.forward(x, delta, cos, sin, cache, plans[layer.window])
        return x if delta is None else x.add_(delta)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Some rows of the residual stream, `[n, M] -> [n, V]`."""
        return self._head(self._kernels.rms_norm(x, self._norm, self.spec.norm_eps))
