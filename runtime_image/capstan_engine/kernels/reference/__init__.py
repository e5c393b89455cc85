"""Plain torch: the specification of every backend, and the CPU path."""

from typing import Final

from capstan_engine.kernels.reference.attention import attention, rotate_and_write_kv
from capstan_engine.kernels.reference.elementwise import add_rms_norm, rms_norm, silu_and_mul
from capstan_engine.kernels.reference.linear import pack_linear
from capstan_engine.kernels.reference.planning import plan_attention
from capstan_engine.kernels.reference.rounding import round_up
from capstan_engine.kernels.reference.sampling import choose_tokens, plan_draws
from capstan_engine.kernels.stage import HostStage

new_stage = HostStage
reads_unused_slots: Final = True
"""Whole blocks are gathered, and what is masked is multiplied by 0."""

__all__ = [
    "add_rms_norm",
    "attention",
    "choose_tokens",
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
