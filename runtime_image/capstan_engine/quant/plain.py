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

    def load(self, read: Callable[[str], torch.Tensor], specs: Sequence[LinearSpec], kernels: Kernels) -> Linear:
        """Fused weights are concatenated once, here, and packed; a weight that is alone is not copied."""
        weights = [read(f"{spec.name}.weight") for spec in specs]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        bias = torch.cat([read(f"{spec.name}.bias") for spec in specs]) if specs[0].bias else None
        # The fused copy alone lives on while the packed one is made.
        del weights
        return self.pack(weight, bias, kernels)

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None, kernels: Kernels) -> Linear:
        """As the kernels like it."""
        return kernels.pack_linear(weight, bias)
