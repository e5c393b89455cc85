"""The CPU path where it can be compiled: what torch does in many operations, in one call each, for bfloat16.

The same names as `kernels.reference`, which is the twin of all of them and does what is not here.
"""

from capstan_engine.kernels.native.attention import attention, rotate_and_write_kv
from capstan_engine.kernels.native.elementwise import add_rms_norm, rms_norm, silu_and_mul
from capstan_engine.kernels.native.layers import fuse_layers
from capstan_engine.kernels.native.planning import NativePlan, plan_attention
from capstan_engine.kernels.native.products import pack_linear
from capstan_engine.kernels.native.sampling import choose_tokens
from capstan_engine.kernels.reference import new_stage, plan_draws, reads_unused_slots, round_up

__all__ = [
    "NativePlan",
    "add_rms_norm",
    "attention",
    "choose_tokens",
    "fuse_layers",
    "new_stage",
    "pack_linear",
    "plan_attention",
    "plan_draws",
    "reads_unused_slots",
    "rms_norm",
    "rotate_and_write_kv",
    "round_up",
    "silu_and_mul",
]
