"""Tables of cos and sin for every position, by the kind of scaling.

The surprising idea: a row depends on its position alone. Keys stay in the cache and are shared between requests, so an
embedding that turned old keys anew as a sequence grows could not be served. Where a kind's reference code does that:

- dynamic: position p gets the frequencies of a sequence of p + 1 tokens, which is what token-by-token decoding does;
- longrope: long factors are taken for all requests when the engine is started for more than the original length.
"""

import math

import torch

from capstan_engine.models.rope_spec import RopeSpec


def rope_tables(
    spec: RopeSpec, head_dim: int, num_positions: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin, `[num_positions, 1, D]` each, for `Kernels.rotate`."""
    positions = torch.arange(num_positions, dtype=torch.float32)
    angles = positions[:, None] * _frequencies(spec, head_dim, num_positions)  # [positions, D/2]
    cos, sin = angles.cos() * spec.attention_factor, angles.sin() * spec.attention_factor
    return (
        torch.cat((cos, cos), -1).unsqueeze(1).to(dtype),
        torch.cat((-sin, sin), -1).unsqueeze(1).to(dtype),
    )


def _frequencies(spec: RopeSpec, head_dim: int, num_positions: int) -> torch.Tensor:
    """Radians per position `[D/2]`, or `[positions, D/2]` where they depend on it."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / spec.theta**exponents
    if spec.kind == "linear":
        return frequencies / spec.factor
    if spec.kind == "dynamic":
        return _dynamic(spec, exponents, head_dim, num_positions)
    if spec.kind == "llama3":
        return _llama3(spec, frequencies)
    if spec.kind == "yarn":
        return _yarn(spec, frequencies, head_dim)
    if spec.kind == "longrope":
        factors = spec.long_factor if num_positions > spec.original_max_positions else spec.short_factor
        return frequencies / torch.tensor(factors)
    return frequencies


def _dynamic(spec: RopeSpec, exponents: torch.Tensor, head_dim: int, num_positions: int) -> torch.Tensor:
    """NTK-aware scaling of the base with the length (bloc97 and emozilla, 2023)."""
    lengths = torch.arange(1, num_positions + 1, dtype=torch.float32).clamp_(min=spec.original_max_positions)
    stretch = spec.factor * lengths / spec.original_max_positions - (spec.factor - 1)
    bases = spec.theta * stretch ** (head_dim / (head_dim - 2))
    return 1.0 / bases[:, None] ** exponents


def _llama3(spec: RopeSpec, frequencies: torch.Tensor) -> torch.Tensor:
    """Llama 3.1: long waves are slowed, short ones kept, those between blended."""
    wavelengths = 2 * math.pi / frequencies
    rotations = spec.original_max_positions / wavelengths
    kept = ((rotations - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)).clamp(0, 1)
    return (1 - kept) * frequencies / spec.factor + kept * frequencies


def _yarn(spec: RopeSpec, frequencies: torch.Tensor, head_dim: int) -> torch.Tensor:
    """YaRN (Peng et al., 2023), section 3.2: a ramp over dimensions between kept and interpolated frequencies."""

    def dimension(num_rotations: float) -> float:
        ratio = spec.original_max_positions / (num_rotations * 2 * math.pi)
        return head_dim * math.log(ratio) / (2 * math.log(spec.theta))

    low, high = dimension(spec.beta_fast), dimension(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    interpolated = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / spec.factor * interpolated + frequencies * (1 - interpolated)
