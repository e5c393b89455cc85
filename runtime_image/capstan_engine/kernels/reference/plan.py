"""The index tensors and masks that plain torch needs to attend over a paged cache."""

from dataclasses import dataclass

import torch

from capstan_engine.kernels.plan import AttentionPlan


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Single-token spans of similar context length, attended to in one batched call."""

    first: int
    """Row of the first query in the step's flat batch."""
    num_sequences: int
    rows: torch.Tensor
    """int64 `[2·S·G·blocks]`: rows of the cache seen as `[2·N·G, B·D]`; S is `num_sequences` rounded up."""
    mask: torch.Tensor
    """`[S·G, 1, L]`: 0 where a key is visible, -inf elsewhere."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Some consecutive queries of a chunk, with the keys that the last of them sees."""

    first: int
    """Row of the first query in the step's flat batch."""
    num_queries: int
    width: int
    """`num_queries` rounded up."""
    num_keys: int
    """Keys 0 .. num_keys - 1 of the gathered ones take part."""
    mask: torch.Tensor
    """`[width, columns]`: added to the scores of the last `columns` keys; those before are visible to all."""


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """One request's span of two or more tokens."""

    rows: torch.Tensor
    """int64 `[2·G·blocks]`, as in `DecodeGroup`."""
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class ReferencePlan(AttentionPlan):
    """One step under one sliding window (or none)."""

    num_tokens: int
    slots: torch.Tensor
    """int64 `[T·2G]`: where the step's keys and values go, in the cache seen as `[2·N·G·B, D]`."""
    decodes: tuple[DecodeGroup, ...]
    chunks: tuple[PrefillChunk, ...]
