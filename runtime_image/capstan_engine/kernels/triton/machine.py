"""The one device that this process computes on, and the numbers of it that a launch needs.

With Triton's interpreter (`TRITON_INTERPRET=1`, tests only) the same code runs on CPU tensors, element by element.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import triton
from numpy.typing import NDArray

INTERPRETED = bool(triton.knobs.runtime.interpret)
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


def to_device(arrays: Sequence[NDArray[np.int32]]) -> list[torch.Tensor]:
    """All in one copy, which the host does not wait for. Each begins at a multiple of 16 bytes.

    Triton compiles a kernel anew for a pointer of another alignment, so that must not depend on the batch.
    """
    padded = [np.pad(array.reshape(-1), (0, -array.size % 4)) for array in arrays]
    flat = torch.from_numpy(np.concatenate(padded))
    if not INTERPRETED:
        flat = flat.pin_memory()
    parts = torch.split(flat.to(DEVICE, non_blocking=True), [len(array) for array in padded])
    return [part[: array.size].view(array.shape) for part, array in zip(parts, arrays, strict=True)]
