"""The device that an engine computes on: the GPU that it sees, or else the processors.

There is no option for it. A container that was given no GPU sees none, and `CUDA_VISIBLE_DEVICES=` hides one.
"""

import torch

from capstan_engine.errors import ConfigurationError
from capstan_engine.runner import machine

_OLDEST = (8, 0)
"""Compute capability of the first GPUs (Ampere) that multiply bfloat16 and copy to shared memory in the background."""


def kind() -> str:
    """`cuda` or `cpu`, as `kernels.choose` takes it. Raises `ConfigurationError` for a GPU that is too old."""
    if not torch.cuda.is_available():
        return "cpu"
    capability = torch.cuda.get_device_capability()
    if capability < _OLDEST:
        raise ConfigurationError(
            f"device: {torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]} and the "
            f"kernels need {_OLDEST[0]}.{_OLDEST[1]}; set CUDA_VISIBLE_DEVICES to another GPU, or to nothing for CPU"
        )
    return "cuda"


def available_memory(kind: str) -> int:
    """Bytes that weights, KV cache and steps may take on a device of this kind."""
    if kind == "cuda":
        free, _ = torch.cuda.mem_get_info()
        return free
    return machine.available_memory()
