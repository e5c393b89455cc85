"""The memory of the KV cache: how many blocks fit, and the tensors of all layers in one allocation."""

from collections.abc import Sequence

import torch

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import KvLayout
from capstan_engine.models.spec import ModelSpec


def bytes_per_block(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Keys and values of all layers for `block_size` tokens."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * block_size * dtype.itemsize


def num_blocks(spec: ModelSpec, block_size: int, dtype: torch.dtype, cache_bytes: int, max_model_len: int) -> int:
    """Blocks that fit into `cache_bytes`; at least one request of `max_model_len` tokens must.

    Raises `ConfigurationError` naming both numbers and the remedies.
    """
    size = bytes_per_block(spec, block_size, dtype)
    blocks, needed = cache_bytes // size, -(-max_model_len // block_size)
    if blocks < needed:
        raise ConfigurationError(
            f"kv_cache_bytes: {cache_bytes} bytes hold {blocks} blocks of {block_size} tokens, but one request of "
            f"max_model_len {max_model_len} needs {needed}; set kv_cache_bytes to at least {needed * size} or "
            f"max_model_len to at most {blocks * block_size}"
        )
    return blocks


class KvCache:
    """`[layers, 2, N, G, B, D]`, zeroed."""

    def __init__(self, spec: ModelSpec, layout: KvLayout, dtype: torch.dtype, device: str) -> None:
        self.layout = layout
        shape = (spec.num_layers, 2, *layout, spec.head_dim)
        self._tensor = torch.zeros(shape, dtype=dtype, device=device)
        self.layers: Sequence[torch.Tensor] = self._tensor.unbind(0)

    def clear(self, blocks: Sequence[int]) -> None:
        """Zero these blocks in every layer.

        Needed before a block is used in part: attention multiplies its unused slots by 0, and a failed request may have
        left NaN there.
        """
        index = torch.tensor(blocks, device=self._tensor.device)
        self._tensor.index_fill_(2, index, 0)
