"""The operator's own series, built from the catalogue.

Counters and histograms of the process are kept here. What concerns one InferenceDeployment is kept as what its newest
turn said, and turned into series when somebody scrapes: so it is of one moment, and all of it ends with the object or
with the leadership.
"""

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from capstan_api.metrics import Metric as Declared
from capstan_api.metrics import Operator as Catalogue
from capstan_api.spec import InferenceDeploymentSpec
from capstan_api.status import ConditionStatus, DecisionAction, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.budgets import AcceleratorBudget
from capstan_operator.decide.scaling.budget import Claim
from capstan_operator.decide.times import epoch_s
from capstan_operator.reconcile import Turn
from capstan_operator.world.kubernetes.api import Call
from capstan_operator.world.kubernetes.store import Key

_MOMENTS: Final = (DecisionAction.SCALE_UP, DecisionAction.SCALE_DOWN, DecisionAction.ROLL)
_LONGEST_MESSAGE: Final = 200
Sample = tuple[Declared, tuple[str, ...], float]


@dataclass(frozen=True)
class _Stake:
    """What one resource has at an accelerator budget, in accelerators."""

    budget: str
    asked: int
    held: int
    withheld: int


@dataclass
class _Subject:
    """What is known of one resource. Without a `deployment` it was never understood."""

    deployment: InferenceDeployment | None
    status: InferenceDeploymentStatus
    decisions: Tally[tuple[str, str]] = field(default_factory=Tally)
    stake: _Stake | None = None


class Telemetry(Collector):
    """All series of one operator, in a registry of their own. `ages` are those of the watches, by resource."""

    def __init__(
        self,
        *,
        ages: Callable[[], Mapping[str, float]],
        is_leader: Callable[[], bool],
        budgets: Iterable[AcceleratorBudget] = (),
    ) -> None:
        self._registry = CollectorRegistry()
        self._turn_seconds = Histogram(
            Catalogue.RECONCILE_SECONDS.name,
            Catalogue.RECONCILE_SECONDS.help,
            registry=self._registry,
            buckets=Catalogue.RECONCILE_SECONDS.bounds(),
        )
        self._turns = self._counter(Catalogue.TURNS)
        self._requests = self._counter(Catalogue.API_REQUESTS)
        self._request_seconds = Histogram(
            Catalogue.API_SECONDS.name,
            Catalogue.API_SECONDS.help,
            Catalogue.API_SECONDS.labels,
            registry=self._registry,
            buckets=Catalogue.API_SECONDS.bounds(),
        )
        self._reviews = self._counter(Catalogue.REVIEWS)
        self._interval = Gauge(Catalogue.TURN_INTERVAL.name, Catalogue.TURN_INTERVAL.help, registry=self._registry)
        self._ages = ages
        self._is_leader = is_leader
        self._budgets = tuple(budgets)
        self._num_objects = 0
        self._subjects: dict[Key, _Subject] = {}
        self._lock = threading.Lock()
        for outcome in ("ok", "error"):
            self._turns.labels(outcome)
        for verdict in ("passed", "warned", "refused"):
            self._reviews.labels(verdict)
        self._registry.register(self)

    def turned(self, key: Key, turn: Turn) -> None:
        """A loop has made a turn."""
        self._turns.labels("error" if turn.error else "ok").inc()
        self._turn_seconds.observe(turn.seconds)
        if turn.status is None:
            return
        with self._lock:
            subject = self._subjects.setdefault(key, _Subject(turn.deployment, turn.status))
            subject.deployment, subject.status = turn.deployment, turn.status
            if turn.decision is not None:
                subject.stake = _stake(turn)
                for said in turn.decision.changes or (turn.decision.said,):
                    subject.decisions[said.action.value, said.reason] += 1

    def not_understood(self, key: Key, status: InferenceDeploymentStatus) -> None:
        """There is no loop for the resource, only a status that says why."""
        with self._lock:
            self._subjects[key] = _Subject(None, status)

    def gone(self, key: Key) -> None:
        """This operator no longer looks after the resource."""
        with self._lock:
            self._subjects.pop(key, None)

    def called(self, call: Call) -> None:
        """A request to the API server is over."""
        self._requests.labels(call.verb, call.resource, str(call.code or "error")).inc()
        self._request_seconds.labels(call.verb).observe(call.seconds)

    def reviewed(self, response: Mapping[str, object]) -> None:
        """The webhook has answered the API server with this."""
        verdict = "refused" if not response["allowed"] else "warned" if "warnings" in response else "passed"
        self._reviews.labels(verdict).inc()

    def paced(self, interval_s: float, num_objects: int) -> None:
        """How often loops turn now, and how many resources are known."""
        self._interval.set(interval_s)
        self._num_objects = num_objects

    def page(self) -> bytes:
        """The text of /metrics."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            subjects = dict(self._subjects)
        samples: list[Sample] = []
        for key, subject in subjects.items():
            # One by one: a loop that has made a turn must not wait for a thousand others to be told of.
            with self._lock:
                samples += _samples(key, subject)
        samples += [(Catalogue.WATCH_AGE, (resource,), age) for resource, age in self._ages().items()]
        samples += [(Catalogue.ACCELERATOR_BUDGET, (of.name,), float(of.accelerators)) for of in self._budgets]
        samples.append((Catalogue.OBJECTS, (), float(self._num_objects)))
        samples.append((Catalogue.IS_LEADER, (), float(self._is_leader())))
        return iter(_families(samples))

    def _counter(self, declared: Declared) -> Counter:
        return Counter(declared.name, declared.help, declared.labels, registry=self._registry)


def _families(samples: Iterable[Sample]) -> list[Metric]:
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for declared, labels, value in samples:
        if declared.name not in families:
            is_counter = declared.kind == "counter"
            made = (CounterMetricFamily if is_counter else GaugeMetricFamily)(
                declared.name, declared.help, labels=declared.labels
            )
            families[declared.name] = made
        families[declared.name].add_metric(list(labels), value)
    return list(families.values())


def _stake(turn: Turn) -> _Stake | None:
    """None where no budget is shared."""
    allowance = turn.observation.allowance if turn.observation is not None else None
    demand = turn.decision.demand if turn.decision is not None else None
    accelerator = turn.deployment.spec.variant.resources.accelerator
    if allowance is None or demand is None or accelerator is None:
        return None
    return _Stake(
        budget=allowance.budget,
        asked=accelerator.count * demand.asked,
        held=Claim(demand, accelerator.count).held,
        # What a person has set is had, whatever the share.
        withheld=accelerator.count * max(0, demand.asked - max(allowance.replicas, demand.wanted)),
    )


def _samples(key: Key, subject: _Subject) -> Iterator[Sample]:
    """Everything that is exposed of one resource."""
    status, who = subject.status, (key.namespace, key.name)
    yield Catalogue.DESIRED_REPLICAS, who, status.desired_replicas
    yield Catalogue.READY_REPLICAS, who, status.ready_replicas
    for phase, count in (
        ("pending", status.pending_replicas),
        ("starting", status.starting_replicas),
        ("draining", status.draining_replicas),
    ):
        yield Catalogue.UNREADY_REPLICAS, (*who, phase), count
    if (limits := status.effective_batch_limits) is not None:
        yield Catalogue.LIMIT, (*who, "max_sequences"), limits.max_sequences
        yield Catalogue.LIMIT, (*who, "max_batched_tokens"), limits.max_batched_tokens
    if subject.deployment is not None:
        yield from _declared(subject.deployment.spec, who)
    for result in status.slos:
        if result.attainment_percent is not None:
            yield Catalogue.ATTAINMENT, (*who, result.name), float(result.attainment_percent) / 100
        if result.error_budget_remaining_percent is not None:
            yield Catalogue.BUDGET, (*who, result.name), float(result.error_budget_remaining_percent) / 100
    for condition in status.conditions:
        for truth in ConditionStatus:
            yield Catalogue.CONDITION, (*who, condition.type.value, truth.value), float(condition.status is truth)
    yield from _told(status, who)
    for name, p50, p90 in (
        ("Total", status.startup.p50_seconds, status.startup.p90_seconds),
        *((phase.name, phase.p50_seconds, phase.p90_seconds) for phase in status.startup.phases),
    ):
        if p50 is not None and p90 is not None:
            yield Catalogue.STARTUP_SECONDS, (*who, name, "0.5"), p50
            yield Catalogue.STARTUP_SECONDS, (*who, name, "0.9"), p90
    yield Catalogue.REPLICA_HOURS, who, float(status.usage.replica_hours)
    yield Catalogue.ACCELERATOR_HOURS, who, float(status.usage.accelerator_hours)
    if (stake := subject.stake) is not None:
        yield Catalogue.ACCELERATORS_ASKED, (*who, stake.budget), stake.asked
        yield Catalogue.ACCELERATORS_HELD, (*who, stake.budget), stake.held
        yield Catalogue.ACCELERATORS_WITHHELD, (*who, stake.budget), stake.withheld
    for (action, reason), count in subject.decisions.items():
        yield Catalogue.DECISIONS, (*who, action, reason), count


def _declared(spec: InferenceDeploymentSpec, who: tuple[str, ...]) -> Iterator[Sample]:
    """What the resource itself says."""
    batching = spec.engine.batching
    for limit, bound, value in (
        ("max_sequences", "min", batching.min_sequences),
        ("max_sequences", "max", batching.max_sequences),
        ("max_batched_tokens", "min", batching.min_batched_tokens),
        ("max_batched_tokens", "max", batching.max_batched_tokens),
    ):
        yield Catalogue.LIMIT_BOUND, (*who, limit, bound), value
    for declared in spec.slos:
        yield Catalogue.OBJECTIVE, (*who, declared.name), float(declared.objective_percent) / 100


def _told(status: InferenceDeploymentStatus, who: tuple[str, ...]) -> Iterator[Sample]:
    """The newest decision of each kind that is rare enough for labels."""
    for action in _MOMENTS:
        said = next((said for said in status.decision_history if said.action is action), None)
        if said is not None:
            labels = (*who, said.action.value, said.reason, said.message[:_LONGEST_MESSAGE])
            yield Catalogue.DECISION_INFO, labels, epoch_s(said.time)
