"""Plain torch: the specification of every backend, and the CPU path."""

from capstan_engine.kernels.reference.attention import attention, write_kv
from capstan_engine.kernels.reference.elementwise import rms_norm, rotate, silu_and_mul
from capstan_engine.kernels.reference.linear import pack_linear
from capstan_engine.kernels.reference.planning import plan_attention
from capstan_engine.kernels.reference.rounding import round_up

__all__ = ["attention", "pack_linear", "plan_attention", "rms_norm", "rotate", "round_up", "silu_and_mul", "write_kv"]
