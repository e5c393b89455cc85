"""The one device that this process computes on, and the numbers of it that a launch needs.

With Triton's interpreter (`TRITON_INTERPRET=1`, tests only) the same code runs on CPU tensors, element by element.
"""

import os
from functools import cache

import torch
import triton

from capstan_engine.kernels.native.library import cache_directory

INTERPRETED = bool(triton.knobs.runtime.interpret)
# Beside all else that is compiled here, where a volume keeps it. Triton's own variable goes first.
if "TRITON_CACHE_DIR" not in os.environ:
    triton.knobs.cache.dir = str(cache_directory() / "triton")
# Products and sums are fused on every version of Triton; without this the default would change with the version.
triton.knobs.language.default_fp_fusion = True

DEVICE = "cpu" if INTERPRETED else "cuda"

_INTERPRETED_PROCESSORS = 3
"""Fewer than there is work, so that the loops of every persistent kernel are walked in tests as well."""


@cache
def num_processors() -> int:
    """Streaming multiprocessors."""
    if INTERPRETED:
        return _INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(DEVICE).multi_processor_count


@cache
def shared_bytes() -> int:
    """Shared memory that one program may have; with the interpreter that of an H200."""
    if INTERPRETED:
        return 227 << 10
    return int(torch.cuda.get_device_properties(DEVICE).shared_memory_per_block_optin)
