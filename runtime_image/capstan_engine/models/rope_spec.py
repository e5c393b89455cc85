"""The facts of a rotary position embedding, in the spelling of either generation of configs.

Up to transformers 4: `rope_theta` beside a `rope_scaling` object whose kind is `rope_type` or `type`. Since 5: all of
it in `rope_parameters`.
"""

import math
from dataclasses import dataclass

from capstan_engine.errors import ModelError, UnsupportedModel
from capstan_engine.models.config_file import Config

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Fields that a kind does not use keep their defaults."""

    kind: str
    theta: float
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn, longrope)."""


def read_rope(config: Config, head_dim: int) -> RopeSpec:
    """Raises `UnsupportedModel` for kinds outside `KINDS` and for partial rotation, `ModelError` for odd numbers."""
    fields = config.object("rope_parameters") or config.object("rope_scaling")
    theta = _above(config, "rope_theta", 1.0, 10_000.0)
    sources = (config,) if fields is None else (config, fields)
    if any(source.get("partial_rotary_factor", float, 1.0) != 1.0 for source in sources):
        raise UnsupportedModel(f"{config.path}: partial_rotary_factor is not supported")
    if fields is None:
        return RopeSpec("default", theta)
    theta = _above(fields, "rope_theta", 1.0, theta)
    kind = fields.get("rope_type", str, fields.get("type", str, "default"))
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in KINDS:
        raise UnsupportedModel(f"{config.path}: rope kind {kind!r} is not supported; there are {', '.join(KINDS)}")
    max_positions = config.positive("max_position_embeddings")
    original = config.positive(
        "original_max_position_embeddings", fields.positive("original_max_position_embeddings", max_positions)
    )
    if kind == "default":
        return RopeSpec(kind, theta)
    if kind == "longrope":
        return _longrope(config, fields, theta, head_dim, max_positions, original)
    factor = _above(fields, "factor", 0.0, max_positions / original if kind == "yarn" else None)
    if kind == "llama3":
        low = _above(fields, "low_freq_factor", 0.0)
        high = _above(fields, "high_freq_factor", low)
        return RopeSpec(kind, theta, factor, original, low_freq_factor=low, high_freq_factor=high)
    if kind == "yarn":
        return RopeSpec(
            kind,
            theta,
            factor,
            original,
            beta_fast=_above(fields, "beta_fast", 0.0, 32.0),
            beta_slow=_above(fields, "beta_slow", 0.0, 1.0),
            truncate=fields.get("truncate", bool, True),
            attention_factor=fields.get("attention_factor", float, _yarn_attention_factor(fields, factor)),
        )
    return RopeSpec(kind, theta, factor, max_positions)


def _longrope(
    config: Config, fields: Config, theta: float, head_dim: int, max_positions: int, original: int
) -> RopeSpec:
    short, long = fields.numbers("short_factor"), fields.numbers("long_factor")
    if not len(short) == len(long) == head_dim // 2:
        raise ModelError(f"{config.path}: longrope needs short_factor and long_factor of {head_dim // 2} numbers each")
    if not all(0 < value < math.inf for value in (*short, *long)):
        raise ModelError(f"{config.path}: short_factor and long_factor must be positive")
    factor = _above(fields, "factor", 0.0, max_positions / original)
    # LongRoPE (Ding et al., 2024): the entropy of attention grows with the logarithm of the context.
    scaled = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    attention_factor = fields.get("attention_factor", float, scaled)
    return RopeSpec(
        "longrope",
        theta,
        factor,
        original,
        short_factor=short,
        long_factor=long,
        attention_factor=attention_factor,
    )


def _yarn_attention_factor(fields: Config, factor: float) -> float:
    """YaRN (Peng et al., 2023), equation 22; `mscale` and `mscale_all_dim` are DeepSeek's variant."""

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    mscale, all_dim = fields.get("mscale", float, 0.0), fields.get("mscale_all_dim", float, 0.0)
    return magnitude(mscale) / magnitude(all_dim) if mscale and all_dim else magnitude(1.0)


def _above(fields: Config, name: str, bound: float, default: float | None = None) -> float:
    """A finite number greater than `bound`, so that no table of angles holds NaN."""
    value = fields.get(name, float, default)
    if not bound < value < math.inf:
        raise ModelError(f"{fields.path}: {name} must be a number above {bound:g}, not {value:g}")
    return value
