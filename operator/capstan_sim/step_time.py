"""How long a step takes on given hardware, and what one replica of it holds.

    seconds = a + b·prefill tokens + c·decoding sequences + d·their context tokens + e·attention pairs

Knows neither requests nor scheduling. A chunk of k tokens at depth p has k·(p + k/2) attention pairs. The two built-in
profiles are derived from layer latencies measured on H100 and published with LLMServingSim
(github.com/casys-kaist/LLMServingSim, profiler/v0/perf_models/H100).
"""

import json
import math
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Self

from capstan_api.step_time import StepTime
from capstan_sim.errors import SimulationError

_PATH: Final = "/spec/variants/0/stepTime"


@dataclass(frozen=True, slots=True)
class StepModel:
    """Coefficients in seconds per unit, and the hardware of one replica."""

    base_s: float
    prefill_token_s: float
    sequence_s: float
    context_token_s: float
    attention_pair_s: float
    kv_tokens: int
    num_gpus: int = 1
    outside_s: float = 0.0
    """What a request takes beyond its steps: HTTP, tokenizing, the ways between processes."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise SimulationError(f"step model: {field.name} is {value}; it must be a number of at least 0")
        if self.base_s + self.prefill_token_s <= 0 or self.kv_tokens < 1 or self.num_gpus < 1:
            raise SimulationError("step model: a step must take time, and kv_tokens and num_gpus must be at least 1")

    def seconds(self, prefill_tokens: float, sequences: float, context: float, pairs: float) -> float:
        """Duration of one step; `context` is the sum over the decoding sequences."""
        return (
            self.base_s
            + self.prefill_token_s * prefill_tokens
            + self.sequence_s * sequences
            + self.context_token_s * context
            + self.attention_pair_s * pairs
        )

    def slowed(self, factor: float) -> Self:
        """Hardware that holds as much and takes `factor` times as long."""
        if factor == 1:
            return self
        return replace(
            self,
            base_s=factor * self.base_s,
            prefill_token_s=factor * self.prefill_token_s,
            sequence_s=factor * self.sequence_s,
            context_token_s=factor * self.context_token_s,
            attention_pair_s=factor * self.attention_pair_s,
        )

    def holding(self, kv_tokens: int) -> Self:
        """The same hardware with a KV cache of this size."""
        return replace(self, kv_tokens=kv_tokens)

    @classmethod
    def of(cls, declared: StepTime, kv_tokens: int | None = None, num_gpus: int = 1) -> Self:
        """That of a resource; raises `SimulationError` where neither it nor the caller says what the KV cache holds."""
        kv_tokens = kv_tokens or declared.kv_cache_tokens
        if kv_tokens is None:
            raise SimulationError(
                "stepTime does not tell how many tokens the KV cache holds; give it kvCacheTokens, or add --kv-tokens"
            )
        base_s, prefill_token_s, sequence_s, context_token_s, attention_pair_s = declared.coefficients
        return cls(
            base_s,
            prefill_token_s,
            sequence_s,
            context_token_s,
            attention_pair_s,
            kv_tokens,
            num_gpus,
            outside_s=declared.request_microseconds / 1e6,
        )

    def patch(self) -> list[dict[str, Any]]:
        """A JSON patch that declares it of a resource's variant."""
        coefficients = astuple(self)[:5]
        declared = StepTime.of(coefficients, request_s=self.outside_s, kv_cache_tokens=self.kv_tokens)
        return [{"op": "add", "path": _PATH, "value": declared.model_dump(mode="json", by_alias=True)}]

    @classmethod
    def named(cls, name: str) -> Self:
        """A built-in profile, or the one in a JSON file: a `patch`, or an object with the fields of this class."""
        if name in PROFILES:
            return cls(*PROFILES[name])
        try:
            document = json.loads(Path(name).read_text())
            if isinstance(document, list):
                [declared] = (each["value"] for each in document if each.get("path") == _PATH)
                return cls.of(StepTime.model_validate(declared))
            return cls(**document)
        except OSError as error:
            known = ", ".join(PROFILES)
            raise SimulationError(
                f"step model {name!r} is neither built in ({known}) nor a file: {error.strerror}"
            ) from None
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            wanted = ", ".join(field.name for field in fields(cls))
            raise SimulationError(
                f"step model {name}: neither a JSON patch of {_PATH} nor a JSON object of {wanted}: {error}"
            ) from None


PROFILES: Final[dict[str, tuple[float, float, float, float, float, int, int]]] = {
    "llama3-8b-h100": (8.0e-3, 2.4e-5, 2.0e-5, 4.9e-8, 2.0e-9, 400_000, 1),
    "llama3-70b-4xh100": (2.2e-2, 6.8e-5, 4.0e-5, 3.0e-8, 2.6e-9, 410_000, 4),
}
