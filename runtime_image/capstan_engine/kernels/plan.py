"""What attention must know about one step, in numbers: the words in which runner, models and backends speak of it."""

from typing import NamedTuple

import torch

from capstan_engine.block_table import BlockTable


class Span(NamedTuple):
    """The tokens of one request in a step: positions `start .. start + length - 1`."""

    start: int
    length: int
    block_table: BlockTable


class KvLayout(NamedTuple):
    """Sizes of one layer's cache `[2, N, G, B, D]`."""

    num_blocks: int
    num_kv_heads: int
    block_size: int


class QkNorm(NamedTuple):
    """Norms over the width of each query and key head (Qwen3)."""

    query: torch.Tensor
    """`[D]`"""
    key: torch.Tensor
    """`[D]`"""
    eps: float


class AttentionPlan:
    """What a backend worked out about one step under one sliding window (or none), for every layer to use.

    Only the backend that made it looks inside.
    """

    __slots__ = ()
