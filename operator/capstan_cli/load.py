"""Which traffic a run uses, as its options state it: a trace with what is done to it, and the facts a report gives."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from capstan_api.spec import InferenceDeploymentSpec
from capstan_cli import traffic
from capstan_cli.measure import Thresholds
from capstan_cli.traffic import Arrival, ClassMix, Speed


@dataclass(frozen=True)
class TraceLoad:
    """A trace file and the changes made to it, in the order in which they are made."""

    path: Path
    window: str | None = None
    every: int = 1
    clones: int = 1
    max_prompt: int | None = None
    max_output: int | None = None
    speed: Speed = field(default_factory=Speed)
    mix: ClassMix = field(default_factory=ClassMix)
    seed: int = 0
    peak_load: float | None = None
    """Wanted peak, in multiples of what one replica serves; the replay thins the trace to it. None: as it is."""

    def arrivals(self) -> list[Arrival]:
        """The requests of the run; raises `InputError`."""
        arrivals = traffic.read(self.path)
        if self.window:
            arrivals = traffic.window(arrivals, self.window)
        arrivals = traffic.every(arrivals, self.every)
        arrivals = traffic.cloned(arrivals, self.clones, self.seed)
        arrivals = traffic.capped(arrivals, self.max_prompt, self.max_output)
        arrivals = traffic.replayed(arrivals, self.speed)
        return self.mix.assigned(arrivals, self.seed)

    def facts(self, arrivals: list[Arrival]) -> dict[str, Any]:
        """What a reader of the report must know to repeat the load."""
        return {
            "trace": str(self.path),
            "requests": len(arrivals),
            "seconds": round(arrivals[-1].at_s, 3),
            "window": self.window,
            "every": self.every,
            "clones": self.clones,
            "max_prompt_tokens": self.max_prompt,
            "max_output_tokens": self.max_output,
            "speedup": str(self.speed),
            "slo_class_mix": asdict(self.mix),
            "seed": self.seed,
            "peak_load": self.peak_load,
            "mean_prompt_tokens": round(sum(a.prompt_tokens for a in arrivals) / len(arrivals), 1),
            "mean_output_tokens": round(sum(a.output_tokens for a in arrivals) / len(arrivals), 1),
        }


def longest(arrivals: list[Arrival]) -> tuple[int, int]:
    """Prompt and output tokens of the request that needs most context."""
    most = max(arrivals, key=lambda a: a.prompt_tokens + a.output_tokens)
    return most.prompt_tokens, most.output_tokens


def declared(spec: InferenceDeploymentSpec) -> Mapping[str, Thresholds]:
    """The thresholds of each SLO class of a resource."""
    return {
        slo.name: Thresholds(
            ttft_ms=slo.ttft.threshold_milliseconds if slo.ttft else None,
            tpot_ms=slo.tpot.threshold_milliseconds if slo.tpot else None,
        )
        for slo in spec.slos
    }
