"""The one device that this process computes on, and the numbers of it that a launch needs.

With Triton's interpreter (`TRITON_INTERPRET=1`, tests only) the same code runs on CPU tensors, element by element.
"""

import os
import subprocess
from functools import cache
from pathlib import Path

import torch
import triton

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels.native.library import cache_directory
from capstan_engine.kernels.triton import driver

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


def reach() -> None:
    """Have Triton find its way to the device, before anything is loaded for it. Raises `ConfigurationError`."""
    if INTERPRETED:
        return
    here = Path(__file__).parent
    made = driver.path_in(here, Path(triton.__file__).parent)
    if made.exists():
        triton.knobs.build.impl = lambda *_: str(made)
        # Where to link with the driver: looked for even where nothing has to be linked, with a tool that may be absent.
        triton.knobs.nvidia.libcuda_path = str(here)
    try:
        triton.runtime.driver.active.get_current_target()
    except (AssertionError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"device: Triton cannot reach the GPU: {error}; the engine's image has what it needs, elsewhere install "
            f"gcc and Python's headers (python3-dev)"
        ) from error
