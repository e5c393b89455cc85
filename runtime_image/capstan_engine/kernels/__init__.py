"""The seam below the models: what a kernel backend can do, in tensors and numbers only.

A backend is a module with the names of `Kernels`; `choose` returns one and it is handed on from there, never global.
`kernels.reference` is plain torch: the specification of every other backend and a good CPU path.

The letters of every shape comment in the engine:

    T tokens in a step     H query heads      N KV blocks             M hidden width
    R requests             G KV heads         B slots of one block    F feed-forward width
    S sequences of a group D width of a head  L keys (padded)         V vocabulary

One layer's KV cache is `[2, N, G, B, D]`, keys first, then values. Gathering whole blocks of one KV head then yields
contiguous `[L, D]` matrices: with keys and values side by side in one row (`[N, G, B, 2D]`) the bfloat16 matrix product
on CPU is nine times slower, because it has to repack its strided operand.
"""

from types import ModuleType
from typing import cast

from capstan_engine.errors import ConfigurationError
from capstan_engine.kernels import reference
from capstan_engine.kernels.plan import AttentionPlan, KvLayout, Span
from capstan_engine.kernels.protocol import Kernels, Linear

__all__ = ["AttentionPlan", "Kernels", "KvLayout", "Linear", "Span", "choose"]

_BACKENDS: dict[str, ModuleType] = {"reference": reference}


def choose(name: str = "reference", device: str = "cpu") -> Kernels:
    """The backend called `name`, able to run on `device`. Raises `ConfigurationError` for an unknown name."""
    if name not in _BACKENDS:
        raise ConfigurationError(f"kernels: unknown backend {name!r} for {device}; there are {', '.join(_BACKENDS)}")
    return cast(Kernels, _BACKENDS[name])
