"""The memory of the KV cache: how many blocks fit, and the tensors of all layers in one allocation."""

from collections.abc import Sequence

import torch

from capstan_api.footprint import Demand, MemoryFigures
from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import KvLayout
from capstan_engine.models.spec import ModelSpec


def num_blocks(figures: MemoryFigures, demand: Demand) -> int:
    """Blocks that fit into the cache; at least one request of the greatest length must.

    Raises `ConfigurationError` naming both numbers and the remedies.
    """
    blocks, needed = figures.num_blocks(demand), -(-demand.max_model_len // demand.block_size)
    if blocks < needed:
        raise ConfigurationError(
            f"kv_cache_bytes: {demand.kv_cache_bytes} bytes hold {blocks} blocks of {demand.block_size} tokens, but "
            f"one request of max_model_len {demand.max_model_len} needs {needed}; set kv_cache_bytes to at least "
            f"{figures.smallest_kv_cache_bytes(demand)} or max_model_len to at most {blocks * demand.block_size}"
        )
    return blocks


class KvCache:
    """`[layers, 2, N, G, B, D]`, zeroed."""

    def __init__(self, spec: ModelSpec, layout: KvLayout, dtype: torch.dtype, device: str) -> None:
        self.layout = layout
        shape = (spec.num_layers, 2, *layout, spec.head_dim)
        self._tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers: Sequence[torch.Tensor] = self._tensor.unbind(0)

    @property
    def device(self) -> torch.device:
        return self._tensor.device

    def clear(self, blocks: torch.Tensor) -> None:
        """Zero these blocks, int64 on the cache's device, in every layer.

        Needed before a block is used in part by kernels that multiply its unused slots by 0: a failed request may have
        left NaN there.
        """
        self._tensor.index_fill_(2, blocks, 0)
