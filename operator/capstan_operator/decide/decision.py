"""One decision as a value: what to do, what people are told, and what the next decision must remember."""

from pydantic import Field

from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_operator.decide.actions import Action
from capstan_operator.decide.fleets.latencies import Quantiles
from capstan_operator.decide.limits.trials import Verdict
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.scaling.demand import Demand
from capstan_operator.decide.seen.signals import Signals
from capstan_operator.decide.values import Value


class Prediction(Value):
    """What a fleet of so many replicas would have meant for the requests of the look-back."""

    replicas: int
    attainment: dict[str, float]
    """Per SLO class the share of requests that it would have met, judged with the law's margin."""
    cost_per_hour: float
    ttft: dict[str, Quantiles] = Field(default_factory=dict)
    """Per SLO class with requests, newer ones weighing more, judged with the margin too."""
    tpot: dict[str, Quantiles] = Field(default_factory=dict)
    """Likewise, of the requests of all classes, at each one's own percentile."""


class Decision(Value):
    """Made by `decide`; equal inputs give an equal decision."""

    at: float
    actions: tuple[Action, ...]
    """In the order in which they should be carried out."""
    said: DecisionStatus
    """The decision for people: the most important change, or the hold and its reason."""
    changes: tuple[DecisionStatus, ...]
    """Everything that changed in this turn; empty for a hold."""
    predictions: tuple[Prediction, ...] = ()
    """Of one replica fewer than is wanted now, of as many, and of one more; empty for a hold, and until anything can be
    told.
    """
    margin: float | None = None
    """By how much a real fleet was taken to need to be larger than the virtual one that suffices."""
    verdict: Verdict | None = None
    """Of a trial of batch limits that has ended in this turn, with what it rests on."""
    demand: Demand | None = None
    """What it asks of the accelerator budget that it shares; None without one."""
    signals: Signals
    memory: Memory
    status: InferenceDeploymentStatus
    """All but `status.memory`, which is `memory.durable()` and too long to be made in every turn."""
    revisions: frozenset[str] = frozenset()
    """Those that replicas may be started of, now or after a rollback."""
