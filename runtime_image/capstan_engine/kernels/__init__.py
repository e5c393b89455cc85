"""The seam below the models: what a kernel backend can do, in tensors and numbers only.

A backend is a module with the names of `Backend`; `choose` returns one and it is handed on from there, never global.
`kernels.reference` is plain torch: the specification of every other backend, and the CPU path where nothing can be
compiled. `kernels.native` is the CPU path elsewhere, `kernels.triton` the CUDA path.

The letters of every shape comment in the engine:

    T tokens in a step     H query heads      N KV blocks             M hidden width
    R requests             G KV heads         B slots of one block    F feed-forward width
    S sequences of a group D width of a head  L keys (padded)         V vocabulary

One layer's KV cache is `[2, N, G, B, D]`, keys first, then values. Gathering whole blocks of one KV head then yields
contiguous `[L, D]` matrices: with keys and values side by side in one row (`[N, G, B, 2D]`) the bfloat16 matrix product
on CPU is nine times slower, because it has to repack its strided operand.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TypeGuard

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import reference
from capstan_engine.kernels.draw import Draw, Penalties
from capstan_engine.kernels.layers import FusedLayers, FusingBackend, FusingKernels, LayerParts
from capstan_engine.kernels.native.library import library
from capstan_engine.kernels.plan import AttentionPlan, KvLayout, QkNorm, Span
from capstan_engine.kernels.protocol import Backend, Kernels, Linear, RecordableBackend, RecordableKernels
from capstan_engine.kernels.reference.plan import ReferencePlan
from capstan_engine.kernels.stage import Stage

__all__ = [
    "AttentionPlan",
    "Draw",
    "FusedLayers",
    "Kernels",
    "KvLayout",
    "LayerParts",
    "Linear",
    "Penalties",
    "QkNorm",
    "RecordableKernels",
    "Span",
    "Stage",
    "choose",
    "fuses",
    "recordable",
]


def choose(device: str = "cpu") -> Kernels:
    """The backend of a kind of device, `cpu` or `cuda`. Raises `ConfigurationError` for any other.

    Each assignment below has the type checker compare a module with the protocol.
    """
    if device == "cpu":
        # Here and not above: it is built on the reference, which is a part of this package.
        from capstan_engine.kernels import native

        plain: Backend[ReferencePlan, Sequence[Draw]] = reference
        compiled: FusingBackend[native.NativePlan, Sequence[Draw]] = native
        return plain if library() is None else compiled
    if device == "cuda":
        if find_spec("triton") is None:
            raise ConfigurationError("device: the kernels for cuda need Triton; install torch's CUDA build")
        # Here and not above: without a GPU there need be no Triton.
        from capstan_engine.kernels import triton
        from capstan_engine.kernels.triton import machine

        machine.reach()
        on_gpu: RecordableBackend[triton.TritonPlan, triton.TritonDraws] = triton
        return on_gpu
    raise ConfigurationError(f"device: there are no kernels for {device!r}; use cpu or cuda")


def recordable(backend: Kernels) -> TypeGuard[RecordableKernels]:
    """Whether the backend's device can repeat steps by itself."""
    return hasattr(backend, "plan_decodes")


def fuses(backend: Kernels) -> TypeGuard[FusingKernels]:
    """Whether the backend computes all layers at once."""
    return hasattr(backend, "fuse_layers")
