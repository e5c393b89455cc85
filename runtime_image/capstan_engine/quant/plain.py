"""No quantization: a weight `[N, K]` and perhaps a bias `[N]`. Formats that round while loading begin here."""

from collections.abc import Callable, Sequence

import torch

from capstan_engine.kernels import Kernels, Linear
from capstan_engine.quant.format import Format
from capstan_engine.quant.storage import LinearSpec


class Plain:
    """Weights in the engine's own dtype."""

    @property
    def head(self) -> Format:
        """The same."""
        return self

    def tensors(self, spec: LinearSpec) -> dict[str, tuple[int, ...]]:
        """`NAME.weight`, and `NAME.bias` where the layer has one."""
        shapes: dict[str, tuple[int, ...]] = {f"{spec.name}.weight": (spec.out_features, spec.in_features)}
        if spec.bias:
            shapes[f"{spec.name}.bias"] = (spec.out_features,)
        return shapes

    def load(
        self, read: Callable[[Sequence[str]], torch.Tensor], specs: Sequence[LinearSpec], kernels: Kernels
    ) -> Linear:
        """Fused weights are read into one, which is then packed."""
        bias = read([f"{spec.name}.bias" for spec in specs]) if specs[0].bias else None
        return self.pack(read([f"{spec.name}.weight" for spec in specs]), bias, kernels)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """As the kernels like it."""
        return kernels.pack_linear(weight, bias)
