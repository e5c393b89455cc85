"""What a decision is made from: rates, lengths, latencies and load, by class and in all.

Values only; `reading` finds them. The surprising idea: `None` means not known, never zero.
"""

from pydantic import Field

from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.values import Value

# Requests after which a mean length is half forgotten.
_LENGTH_MEMORY = 1000.0
_ENOUGH_LENGTHS = 3
_NAMED = 3


class Lengths(Value):
    """Mean request, forgetting slowly. `cached` is the share of prompt tokens found in the prefix cache."""

    prompt: float = 0
    output: float = 0
    cached: float = 0
    weight: float = 0

    @property
    def is_known(self) -> bool:
        return self.weight >= _ENOUGH_LENGTHS and self.output > 0

    @property
    def computed_prompt(self) -> float:
        """Prompt tokens that have to be computed."""
        return max(1.0, self.prompt * (1 - self.cached))

    @property
    def context(self) -> float:
        """Mean context of a decoding sequence."""
        return self.prompt + self.output / 2

    def learn(self, counted: ClassCounters, cached: float | None) -> "Lengths":
        """The means after the requests that were completed."""
        requests = counted.completed
        if requests <= 0:
            return self
        weight = self.weight * 0.5 ** (requests / _LENGTH_MEMORY) + requests
        share = requests / weight
        return Lengths.made(
            prompt=self.prompt + share * (counted.prompt_tokens / requests - self.prompt),
            output=self.output + share * (counted.output_tokens / requests - self.output),
            cached=self.cached if cached is None else self.cached + share * (cached - self.cached),
            weight=weight,
        )


class ClassSignals(Value):
    """One SLO class in the window; latencies at the class's own percentiles, in seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    num_ttft: float = 0
    num_tpot: float = 0
    attainment: float | None = None
    requests: float = 0
    """Requests counted against the SLO."""
    arrivals_per_s: float = 0


class Signals(Value):
    """All of them together, at one moment."""

    window_s: float
    """How much of the window has been seen."""
    gateway_seen: bool
    """A gateway was read and believed in this very look."""
    complete: bool
    """Every ready gateway and replica was read and believed in this very look."""
    blind: tuple[str, ...] = ()
    """Ready replicas and gateways that have told nothing for longer than is tolerated."""
    faults: tuple[str, ...] = ()
    """What could not be read or was not believed, one clause each."""
    rejected: tuple[str, ...] = ()
    """Those of them that were read and not believed."""
    classes: dict[str, ClassSignals] = Field(default_factory=dict)
    arrivals_per_s: float | None = None
    output_tokens_per_s: float | None = None
    active: bool = False
    """A request arrived, waits, or is being served; unknown counts as active."""
    waiting: float = 0
    running: float = 0
    held: float = 0
    prefill_backlog: float = 0
    """Prompt tokens on engines that are not computed yet."""
    in_flight: float = 0
    kv_usage: float = 0
    """The fullest replica's."""
    num_serving: int = 0
    """Ready replicas that were read and believed."""
    kv_held: float = 0
    """Blocks in use, of all replicas."""
    kv_blocks: float = 0
    """The smallest replica's."""
    utilisation: float | None = None
    decode_sequences: float = 0
    """Mean in a step, of the busiest part of the window."""
    context_tokens: float = 0
    """Sum over the sequences of a step, likewise."""
    inter_token_s: float | None = None
    """Mean step time as a decoding sequence sees it, over the window."""
    load: dict[str, float] = Field(default_factory=dict)
    """Requests on each replica."""
    cache_value: dict[str, float] = Field(default_factory=dict)
    """Prompt tokens that each replica's prefix cache has lately saved."""

    @property
    def queue(self) -> float:
        return self.waiting + self.held

    @property
    def missing(self) -> str:
        """Who told nothing, for people; a few names however many they are."""
        more = len(self.blind) - _NAMED
        return ", ".join(self.blind[:_NAMED]) + (f" and {more} more" if more > 0 else "")
