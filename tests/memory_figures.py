"""Memory figures of a model that no engine has to be started for."""

from capstan_api.footprint import MemoryFigures

FIGURES = MemoryFigures(
    weights=400 << 20,
    position=512,
    kv_token=64 << 10,
    kv_copied=6,
    step_token=18_432,
    step_position=3072,
    step_sequence=81_920,
    loading=6 << 20,
    processes=480 << 20,
    max_positions=32_768,
)
"""512 MiB of KV cache hold 8192 tokens."""
