"""`spec.scaling`: who decides on replicas and limits, within which bounds, how eagerly, and on how fresh data.

Applied live, all of it. Knows no objectives: what is good enough stands in the SLO classes.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from capstan_api.contract import Contract, Distinct, Rule, Seconds
from capstan_api.schedule import Schedule


class Mode(StrEnum):
    """Who decides on the number of replicas."""

    AUTO = "Auto"
    SHADOW = "Shadow"
    MANUAL = "Manual"


class LimitsMode(StrEnum):
    """Whether the batch limits move."""

    AUTO = "Auto"
    FIXED = "Fixed"


class BatchLimitsPolicy(Contract):
    """How the live limits move inside the envelope `engine.batching`."""

    mode: LimitsMode = Field(default=LimitsMode.AUTO, description="Auto moves the limits; Fixed keeps them at the top.")
    adjustment_interval_seconds: int = Field(
        default=5, ge=1, le=600, description="Least time between two changes of the limits."
    )
    max_step_percent: int = Field(default=10, ge=1, le=100, description="Largest change in one adjustment.")


class Idle(Contract):
    """When a deployment with minReplicas 0 gives up its last replica."""

    scale_to_zero_after_seconds: int = Field(
        default=900, ge=1, le=31_536_000, description="Time without any request before replicas go to zero."
    )


class ScaleUp(Contract):
    """How eagerly replicas are added."""

    stabilization_window_seconds: Seconds = Field(
        default=0, description="How long the need must last before replicas are added."
    )


class ScaleDown(Contract):
    """How eagerly replicas are removed."""

    stabilization_window_seconds: Seconds = Field(
        default=1200,
        description="The look-back: the requests that came within it must have been served in time by fewer replicas "
        "before one is removed, and by those that there are, or some are added.",
    )


class Behavior(Contract):
    """Windows that keep replicas from flapping, in the words of HorizontalPodAutoscaler."""

    scale_up: ScaleUp = Field(default_factory=ScaleUp)
    scale_down: ScaleDown = Field(default_factory=ScaleDown)


class StaleMetrics(Contract):
    """What counts as missing data. Missing data never removes a replica."""

    max_age_seconds: int = Field(
        default=30, ge=1, le=3600, description="Older measurements are not acted upon: the last decision holds."
    )


class Scaling(Contract):
    """How many replicas, and who decides. Applied live."""

    mode: Mode = Field(
        default=Mode.AUTO, description="Auto scales; Shadow only recommends, in status; Manual obeys `replicas`."
    )
    min_replicas: int = Field(default=1, ge=0, le=10_000, description="Fewest replicas; 0 permits scaling to zero.")
    max_replicas: int = Field(default=1, ge=1, le=10_000, description="Most replicas.")
    replicas: int | None = Field(
        default=None,
        ge=0,
        le=10_000,
        description="Replicas in mode Manual and Shadow; `kubectl scale` writes it. Mode Auto does not read it.",
    )
    schedules: Annotated[list[Schedule], Field(max_length=16), Distinct(by="name")] = Field(
        default_factory=list,
        description="Windows in which other bounds hold. Where several are open, the highest of each kind holds. Mode "
        "Manual does not read them.",
    )
    spare_replicas: int = Field(
        default=0, ge=0, le=1000, description="Replicas beyond those that are needed, so that some may fail."
    )
    batch_limits: BatchLimitsPolicy = Field(default_factory=BatchLimitsPolicy)
    idle: Idle = Field(default_factory=Idle)
    behavior: Behavior = Field(default_factory=Behavior)
    pending_timeout_seconds: int = Field(
        default=120,
        ge=1,
        le=86_400,
        description="A replica that nothing has run for so long is not counted on: CapacityAvailable becomes False.",
    )
    stale_metrics: StaleMetrics = Field(default_factory=StaleMetrics)

    rules = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            holds=lambda s: s.min_replicas <= s.max_replicas,
            message="minReplicas must not exceed maxReplicas",
        ),
        Rule(
            cel="self.mode != 'Manual' || has(self.replicas)",
            holds=lambda s: s.mode is not Mode.MANUAL or s.replicas is not None,
            message="mode Manual needs replicas",
        ),
        Rule(
            cel=(
                "self.schedules.all(s, (has(s.minReplicas) ? s.minReplicas : self.minReplicas)"
                " <= (has(s.maxReplicas) ? s.maxReplicas : self.maxReplicas))"
            ),
            holds=lambda s: all(low <= high for low, high in map(s.bounds_in, s.schedules)),
            message="schedules: minReplicas must not exceed maxReplicas; what a window does not say, scaling does",
        ),
    )

    def bounds_in(self, schedule: Schedule) -> tuple[int, int]:
        """Fewest and most replicas while this window alone is open."""
        low = self.min_replicas if schedule.min_replicas is None else schedule.min_replicas
        high = self.max_replicas if schedule.max_replicas is None else schedule.max_replicas
        return low, high

    @property
    def highest_replicas(self) -> int:
        """Most replicas that there can ever be in mode Auto."""
        return max([self.max_replicas, *(self.bounds_in(schedule)[1] for schedule in self.schedules)])
