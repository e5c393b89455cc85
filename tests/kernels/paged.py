"""Requests over a paged cache in which everything that nobody may read is NaN."""

import math
from dataclasses import dataclass

import torch

from capstan_engine.block_table import block_table
from capstan_engine.kernels import AttentionPlan, Kernels, KvLayout, Span


@dataclass(frozen=True)
class Paged:
    """`queries` `[T, H, D]` of `spans`, whose keys and values are all in `cache` `[2, N, G, B, D]`; on CPU."""

    spans: list[Span]
    layout: KvLayout
    queries: torch.Tensor
    cache: torch.Tensor

    @property
    def clean(self) -> torch.Tensor:
        """The cache in float32 with zeros for NaN, which the reference needs."""
        return self.cache.float().nan_to_num(0.0)

    def plan(self, backend: Kernels, dtype: torch.dtype, window: int | None = None) -> AttentionPlan:
        """What the backend's kernels read, on its device."""
        stage = backend.new_stage()
        plan: AttentionPlan = backend.plan_attention(self.spans, self.layout, [window], dtype, stage)[window]
        stage.send()
        return plan


def paged(
    lengths: list[tuple[int, int]],
    *,
    num_heads: int,
    num_kv_heads: int,
    width: int,
    block_size: int,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Paged:
    """Each of `lengths` is a start and a number of queries; blocks are scattered."""
    order = sorted(lengths, key=lambda span: (span[1] > 1, -span[0]))
    counts = [-(-(start + length) // block_size) for start, length in order]
    layout = KvLayout(sum(counts) + 2, num_kv_heads, block_size)
    scattered = iter(torch.randperm(layout.num_blocks, generator=generator).tolist())
    spans = [
        Span(start, length, block_table(next(scattered) for _ in range(count)))
        for (start, length), count in zip(order, counts, strict=True)
    ]
    cache = torch.full((2, *layout, width), math.nan, dtype=dtype)
    for start, length, table in spans:
        new = torch.randn(2, len(table), num_kv_heads, block_size, width, generator=generator).to(dtype)
        used = torch.arange(len(table) * block_size).view(len(table), 1, block_size, 1) < start + length
        cache[:, list(table)] = torch.where(used, new, math.nan)
    queries = torch.randn(sum(n for _, n in order), num_heads, width, generator=generator).to(dtype)
    return Paged(spans, layout, queries, cache)
