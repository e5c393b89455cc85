"""Triton kernels: the CUDA path. Each has its twin in `kernels.reference`, which says what it must compute."""

from typing import Final

from capstan_engine.kernels.triton.attention import attention
from capstan_engine.kernels.triton.elementwise import add_rms_norm, rms_norm, silu_and_mul
from capstan_engine.kernels.triton.linear import pack_linear
from capstan_engine.kernels.triton.planning import TritonPlan, plan_attention, plan_decodes
from capstan_engine.kernels.triton.rotary import rotate_and_write_kv
from capstan_engine.kernels.triton.rounding import round_up
from capstan_engine.kernels.triton.sampling import TritonDraws, choose_tokens, plan_draws
from capstan_engine.kernels.triton.stage import DeviceStage

new_stage = DeviceStage
reads_unused_slots: Final = False

__all__ = [
    "TritonDraws",
    "TritonPlan",
    "add_rms_norm",
    "attention",
    "choose_tokens",
    "new_stage",
    "pack_linear",
    "plan_attention",
    "plan_decodes",
    "plan_draws",
    "reads_unused_slots",
    "rms_norm",
    "rotate_and_write_kv",
    "round_up",
    "silu_and_mul",
]
