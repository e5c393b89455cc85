"""How large a KV cache is that was given no size: on a GPU by what is free there after the largest step was tried.

Figures tell what a model should take; what a device's context, libraries and fragments take only the device can tell.
On a CPU the figures are exact, and memory that is free now is not ours alone, so there the figures decide.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

import torch

from capstan_api.footprint import KV_CACHE_SHARE, Demand, MemoryFigures

DEFAULT_BYTES: Final = 512 << 20
"""On a CPU of whose memory nobody said how much is ours, unless less fits."""


class Meter(Protocol):
    """A device's memory, in bytes."""

    def free(self) -> int:
        """What nobody holds."""

    def peak(self, work: Callable[[], None]) -> int:
        """What `work` holds at most at one moment, beside what was held before."""


class CudaMeter:
    """The GPU's."""

    def free(self) -> int:
        # Freed tensors stay with torch unless it is asked to return them.
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def peak(self, work: Callable[[], None]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def of_figures(figures: MemoryFigures, demand: Demand, memory_bytes: int | None, available_bytes: int) -> int:
    """Bytes of the cache before anything is loaded, in `memory_bytes` that are ours."""
    if memory_bytes is None:
        usual = min(DEFAULT_BYTES, figures.kv_cache_bytes(demand, available_bytes))
        return max(usual, figures.smallest_kv_cache_bytes(demand))
    return figures.kv_cache_bytes(demand, min(memory_bytes, available_bytes))


def measured(figures: MemoryFigures, demand: Demand, meter: Meter, largest_step: Callable[[], None]) -> int:
    """The same on a device that holds the weights, and on which `largest_step` is tried now.

    Of a step's own memory the larger counts, what it was seen to take or what the figures say, which know the longest
    contexts as well. May be less than one request needs.
    """
    need = figures.footprint(replace(demand, kv_cache_bytes=0))
    # First the step: what libraries take for themselves when they are first used is not free any more then.
    step = max(meter.peak(largest_step), need.step)
    left = meter.free() - step - need.graphs
    block = figures.kv_token * demand.block_size
    return max(0, int(left * KV_CACHE_SHARE)) // block * block
