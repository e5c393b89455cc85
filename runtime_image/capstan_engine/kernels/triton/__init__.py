"""Triton kernels: the CUDA path. Each has its twin in `kernels.reference`, which says what it must compute."""

from capstan_engine.kernels.triton.attention import attention
from capstan_engine.kernels.triton.elementwise import add_rms_norm, rms_norm, silu_and_mul
from capstan_engine.kernels.triton.linear import pack_linear
from capstan_engine.kernels.triton.planning import TritonPlan, plan_attention
from capstan_engine.kernels.triton.rotary import rotate_and_write_kv
from capstan_engine.kernels.triton.rounding import round_up
from capstan_engine.kernels.triton.sampling import choose_tokens

__all__ = [
    "TritonPlan",
    "add_rms_norm",
    "attention",
    "choose_tokens",
    "pack_linear",
    "plan_attention",
    "rms_norm",
    "rotate_and_write_kv",
    "round_up",
    "silu_and_mul",
]
