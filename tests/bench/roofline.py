"""What this machine reaches on the simplest things there are: a copy, and a product of two large matrices."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""


@dataclass(frozen=True)
class Ceilings:
    """Measured, not from a data sheet."""

    bytes_per_s: float
    """Read and written."""
    flops_per_s: float


def seconds(call: Callable[[], object]) -> float:
    """Of one call and what it started on a GPU, the best of three after one that warms up."""
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def ceilings(timer: Timer, *, matrix: int, copied_bytes: int, dtype: torch.dtype, device: str) -> Ceilings:
    """Of square products of `matrix` rows of random numbers, and copies that read and write `copied_bytes` in all."""
    source = torch.empty(copied_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    left, right = torch.randn(2, matrix, matrix, device=device).to(dtype)
    return Ceilings(
        2 * source.nbytes / timer(partial(target.copy_, source)),
        2 * matrix**3 / timer(partial(torch.matmul, left, right)),
    )
