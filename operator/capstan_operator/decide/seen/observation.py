"""What the operator saw in one look at the world: replicas, gateway and their metrics, unjudged.

Knows no HTTP and no clock: every part carries the moment at which it was measured (`at`, epoch seconds). The surprising
idea: nothing here is trusted. A scraped number may be NaN, negative or absurd until `judgement` has passed it.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from pydantic import Field

from capstan_api.footprint import MemoryFigures
from capstan_api.limits import LimitsState
from capstan_api.replicas import ReplicaEntry
from capstan_api.startup import StartupReport
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.seen.counters import ClassCounters
from capstan_operator.decide.seen.steps import Steps
from capstan_operator.decide.values import Value


class Phase(StrEnum):
    """Where a replica is in its life.

    `Pending` exists and nothing runs it yet; `Failed` waits for its restart; `Draining` takes no new requests.
    """

    PENDING = "Pending"
    STARTING = "Starting"
    READY = "Ready"
    DRAINING = "Draining"
    FAILED = "Failed"


class GatewayMetrics(Value):
    """One scrape of the gateway."""

    at: float
    classes: dict[str, ClassCounters] = Field(default_factory=dict)
    held: float = 0
    in_flight: dict[str, float] = Field(default_factory=dict)
    """Requests being proxied, by replica id."""


class EngineMetrics(Value):
    """One scrape of an engine, with the steps that it took since the last look."""

    at: float
    heartbeat: float
    running: float = 0
    waiting: float = 0
    prefill_backlog: float = 0
    """Prompt tokens of accepted requests that are not computed yet."""
    kv_usage: float = 0
    kv_blocks: float = 0
    """Blocks in the KV cache, whatever their state."""
    steps: float = 0
    busy_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    slo_total: float = 0
    """Requests of all classes that ended here; those that met their thresholds, all and each, follow."""
    slo_good: float = 0
    ttft_good: float = 0
    tpot_good: float = 0
    samples: Steps = b""


MEASURED: Final = EngineMetrics.field_names[:-1]
"""All fields but the samples."""


class Replica(Value):
    """One engine process or pod."""

    id: str
    revision: str
    phase: Phase
    created_at: float
    ready_at: float | None = None
    restarts: int = 0
    url: str | None = None
    """Where its API answers, once it listens."""
    message: str = ""
    """Why it is pending or failed last, for people."""
    startup: StartupReport | None = None
    """What it is busy with while it starts, as it tells itself."""
    metrics: EngineMetrics | None = None
    limits: LimitsState | None = None
    figures: MemoryFigures | None = None
    """What the model takes of memory; asked for at the first look, and until it is remembered."""


class Gateway(Value):
    """One gateway process or pod."""

    id: str
    revision: str
    phase: Phase
    restarts: int = 0
    message: str = ""
    table: tuple[ReplicaEntry, ...] | None = None
    """The replicas that it knows; None when it could not be asked."""
    metrics: GatewayMetrics | None = None


class ConfigurationFault(Value):
    """Why the newest resource is not the one in force."""

    message: str
    generation: int = 0
    """metadata.generation of that newest one, 0 when it is not known."""


class Allowance(Value):
    """What an accelerator budget leaves to one resource."""

    budget: str
    """Its name."""
    replicas: int
    most: int
    """Replicas that the whole of it has room for."""


class Observation(Value):
    """One look at the world."""

    at: float
    replicas: tuple[Replica, ...] = ()
    gateways: tuple[Gateway, ...] = ()
    endpoint: str | None = None
    """Where clients reach the gateways."""
    configuration_fault: ConfigurationFault | None = None
    model_directory: str | None = None
    """Where this world keeps the checkpoint; None when it has none, and `faults` then says why."""
    allowance: Allowance | None = None
    """None where no accelerator budget is shared."""
    refused: tuple[str, ...] = ()
    """What could not be carried out since the look before, one clause each, beginning with the action."""
    faults: tuple[str, ...] = ()
    """What could not be read, or was not believed, one clause each."""

    def with_phase(self, *phases: Phase) -> tuple[Replica, ...]:
        """In the order of `replicas`."""
        present = _by_phase(self)
        if len(phases) == 1:
            return present.get(phases[0], ())
        found = [present[phase] for phase in phases if phase in present]
        if len(found) > 1:
            return tuple([replica for replica in self.replicas if replica.phase in phases])
        return found[0] if found else ()

    @property
    def ids(self) -> tuple[str, ...]:
        """Of all replicas, in their order."""
        return _ids(self)

    @property
    def ready_gateways(self) -> tuple[Gateway, ...]:
        return tuple([gateway for gateway in self.gateways if gateway.phase is Phase.READY])

    @property
    def refused_starts(self) -> tuple[str, ...]:
        """Of `refused`, what keeps replicas from being started; a gateway that will not listen does not."""
        return tuple(dict.fromkeys([clause for clause in self.refused if clause.startswith("StartReplica")]))


@lifelong
def _ids(observation: Observation) -> tuple[str, ...]:
    return tuple([replica.id for replica in observation.replicas])


@lifelong
def _by_phase(observation: Observation) -> Mapping[Phase, tuple[Replica, ...]]:
    """Kept, because everybody asks."""
    return {
        phase: tuple([replica for replica in observation.replicas if replica.phase is phase])
        for phase in {replica.phase for replica in observation.replicas}
    }
