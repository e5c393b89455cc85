"""Linear layers as numbers: their shapes, and how many bytes each format holds one in. No tensors, so planners use it.

Weights of 16 bits that are not quantized take 12 where they are coded (`kernels/native/coding.py`). Group-wise formats
keep a scale and a zero point for each group; the others one scale for each output.
"""

from dataclasses import dataclass
from typing import Final

_SCALE_BYTES: Final = 4
"""A float32 scale, or a bfloat16 scale with its bfloat16 zero point."""
_CODED_BITS: Final = 12


@dataclass(frozen=True, slots=True)
class LinearSpec:
    """One linear layer as the checkpoint's model class declares it; `name` is its prefix (`….self_attn.q_proj`)."""

    name: str
    out_features: int
    in_features: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Storage:
    """How a weight `[N, K]` lies in memory. `bits` 0 is the model's own dtype, unquantized."""

    bits: int = 0
    group_size: int = 0
    """Consecutive inputs that share a scale; 0: all of an output do."""
    head_bits: int = 0
    """Of the output head, which is never grouped."""
    rounds_activations: bool = False
    """torch's product rounds its input by way of float32, and makes a float32 copy of its output."""

    def num_bytes(self, spec: LinearSpec, itemsize: int, *, is_head: bool = False, codes: bool = False) -> int:
        """Weight, scales and bias; `itemsize` is the model's bytes per number, which kernels may code."""
        bits = self.head_bits if is_head else self.bits
        num_weights = spec.out_features * spec.in_features
        bias = spec.out_features * itemsize * spec.bias
        if not bits:
            return num_weights * (_CODED_BITS if codes and itemsize == 2 else 8 * itemsize) // 8 + bias
        groups = spec.in_features // self.group_size if self.group_size and not is_head else 1
        return num_weights * bits // 8 + spec.out_features * groups * _SCALE_BYTES + bias


STORAGES: Final = {
    "None": Storage(),
    "Int8": Storage(8, head_bits=8),
    "Int8Dynamic": Storage(8, head_bits=8, rounds_activations=True),
    "Int4Group32": Storage(4, 32, head_bits=8),
    "Int4Group64": Storage(4, 64, head_bits=8),
    "Int4Group128": Storage(4, 128, head_bits=8),
}
"""By the name of the quantization in `EngineArgs`."""
