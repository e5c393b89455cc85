"""What an engine step of one replica takes, where somebody has measured it before: the law begins with it.

`capstan bench --calibrate` writes it, the operator and `capstan simulate` read it. In whole numbers, as everything in a
resource; the units are those in which five orders of magnitude between the coefficients still leave three digits.
"""

from typing import Final

from pydantic import Field

from capstan_api.contract import Contract

_MOST: Final = 1_000_000_000_000
_PER_S: Final = {"nanoseconds": 1e9, "picoseconds": 1e12}


class StepTime(Contract):
    """seconds = base + prefill tokens + decoding sequences + their context tokens + attention pairs, each times its
    cost; a chunk of k prompt tokens at depth p has k(p + k/2) pairs.
    """

    base_nanoseconds: int = Field(ge=0, le=_MOST, description="What a step takes by itself.")
    prefill_token_nanoseconds: int = Field(ge=1, le=_MOST, description="Added by each prompt token.")
    sequence_nanoseconds: int = Field(ge=0, le=_MOST, description="Added by each decoding sequence.")
    context_token_picoseconds: int = Field(
        ge=0, le=_MOST, description="Added by each token of context of the decoding sequences."
    )
    attention_pair_picoseconds: int = Field(
        ge=0, le=_MOST, description="Added by each pair of a prompt token and one before it."
    )
    request_microseconds: int = Field(
        default=0,
        ge=0,
        le=_MOST,
        description="What a request takes outside of steps: HTTP, tokenizing. For `capstan simulate`.",
    )
    kv_cache_tokens: int | None = Field(
        default=None,
        ge=1,
        le=_MOST,
        description="What the KV cache of one replica holds. For `capstan simulate`; engines tell the operator theirs.",
    )

    @property
    def coefficients(self) -> tuple[float, ...]:
        """Seconds per step, prefill token, sequence, context token and pair."""
        return tuple(getattr(self, name) / per_s for name, per_s in _COEFFICIENTS)

    @classmethod
    def of(cls, coefficients: tuple[float, ...], *, request_s: float, kv_cache_tokens: int) -> "StepTime":
        """That of `coefficients` in seconds, rounded to whole units; no prefill token is free."""
        costs = {
            name: round(per_s * seconds) for (name, per_s), seconds in zip(_COEFFICIENTS, coefficients, strict=True)
        }
        costs["prefill_token_nanoseconds"] = max(1, costs["prefill_token_nanoseconds"])
        return cls(**costs, request_microseconds=round(1e6 * request_s), kv_cache_tokens=kv_cache_tokens)


_COEFFICIENTS: Final = tuple((name, _PER_S[name.rpartition("_")[2]]) for name in tuple(StepTime.model_fields)[:5])
