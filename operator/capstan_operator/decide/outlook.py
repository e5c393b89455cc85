"""One turn's reading put together for the two loops: what engines do, what came, what the objectives allow.

Decides nothing; `batch_limits`, `bank`, `sizing` and `replicas` do, and know nothing of resources and counters. The
surprising idea: it is the only place where a class's percentile, its share of late answers and its priority meet.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf

from capstan_api.engine_args import EngineArgs
from capstan_api.scaling import LimitsMode, Mode
from capstan_api.spec import InferenceDeploymentSpec, Slo
from capstan_operator.decide.curve import Array, sizes
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.queues import Arrived, Class, Engine
from capstan_operator.decide.fleets.season import Season
from capstan_operator.decide.fleets.shape import Shape
from capstan_operator.decide.ledger import Ledger
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.limits import batch_limits, capacity
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.limits.situation import TPOT_SHARE, Target
from capstan_operator.decide.limits.situation import Situation as LimitsSituation
from capstan_operator.decide.limits.trials import Fleet
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.scaling import sizing
from capstan_operator.decide.scaling.replicas import Situation
from capstan_operator.decide.scaling.sizing import Feedback, Sizing
from capstan_operator.decide.seen.counters import NOTHING, ClassCounters
from capstan_operator.decide.seen.observation import Observation, Phase, Replica
from capstan_operator.decide.seen.reading import Reading

_STARTUP_SHARE = 0.9
_SHORTEST_LOOK_BACK_S = 10.0
# Of the tightest TTFT: what waits for less is no queue that somebody would have to work off.
_REAL_QUEUE = 0.6
_CATCH_UP_S, _MOST_CATCHING_UP = 45.0, 1.4
# An objective of 100 % allows nothing; a fleet that misses less than this misses nothing.
_LEAST_ALLOWED = 0.001


@dataclass(frozen=True)
class Outlook:
    """What one turn knows before it decides. `args` are those that replicas are started with."""

    spec: InferenceDeploymentSpec
    args: EngineArgs
    model: EngineModel
    reading: Reading
    shape: Shape
    ledger: Ledger
    now: float

    def limits(self, memory: LimitsMemory, observation: Observation, overdue: Iterable[Replica]) -> batch_limits.Advice:
        """The fast loop's turn; the `overdue` replicas are not waited for."""
        scaling, envelope = self.spec.scaling, self.args.envelope
        policy = scaling.batch_limits
        if policy.mode is LimitsMode.FIXED:
            return batch_limits.Advice(memory=LimitsMemory(limits=envelope.top, reason="Fixed"))
        late = {replica.id for replica in overdue}
        coming = observation.with_phase(Phase.PENDING, Phase.STARTING)
        is_warming = any(not replica.restarts and replica.id not in late for replica in coming)
        situation = self._limits_situation
        if is_warming:
            situation = situation.changed(is_warming=True)
        fleet = Fleet(
            # What nobody is told of cannot be tried.
            replicas=observation.replicas if scaling.mode is not Mode.SHADOW else (),
            tracks=self.reading.window.tracks,
            max_age_s=scaling.stale_metrics.max_age_seconds,
            answer_s=self.reading.lengths.output * (self.reading.signals.inter_token_s or 0.0),
            allowed=min(map(_allowed, self.spec.slos)),
        )
        return batch_limits.adjust(memory, situation, fleet, envelope, policy, self.now)

    def bank(self, memory: Memory, limits: LimitsMemory) -> tuple[Bank, tuple[Feedback, ...]]:
        """The virtual fleets after what came since the last look, and how well they told what was missed."""
        reading, lengths = self.reading, self.reading.lengths
        if reading.seconds <= 0 or not (self.model.is_usable and lengths.is_known) or limits.limits is None:
            return memory.bank, memory.feedback
        seen, fleets, slos = reading.signals, self._sizes, self.spec.slos
        deltas = [reading.delta.get(slo.name, NOTHING) for slo in slos]
        late = [counted.slo_total - counted.slo_good for counted in deltas]
        bank = memory.bank.advanced(
            fleets,
            self._engine(limits),
            _classes(self.spec),
            [self._arrived(counted) for counted in deltas],
            late=late,
            seconds=reading.seconds,
            now=self.now,
            span_s=max(_SHORTEST_LOOK_BACK_S, self.spec.scaling.behavior.scale_down.stabilization_window_seconds),
            running=seen.running,
            num_ready=seen.num_serving,
        )
        before = memory.feedback if memory.bank.classes == bank.classes else ()
        is_queueing = self._limits_situation.is_queueing
        feedback = tuple(
            each.learn(
                seen=counted.slo_total,
                seen_missed=missed,
                told=counted.arrived,
                told_missed=share * counted.arrived,
                seconds=reading.seconds,
                is_queueing=is_queueing,
            )
            for each, counted, missed, share in zip(
                before or (Feedback(),) * len(slos), deltas, late, bank.told, strict=True
            )
        )
        return bank, feedback

    def season(self, memory: Season) -> Season:
        """Days and weeks after what came since the last look."""
        if self.reading.seconds <= 0:
            return memory
        arrived = sum(counted.arrived for counted in self.reading.delta.values())
        return memory.learn(arrived, self.reading.seconds, self.now)

    def sizing(self, bank: Bank, feedback: tuple[Feedback, ...], season: Season) -> Sizing | None:
        """What the look-back asks for; None until anything came that could be judged."""
        if bank.since is None or bank.classes != tuple(slo.name for slo in self.spec.slos):
            return None
        allowed = [_allowed(slo) for slo in self.spec.slos]
        startup_s = self._startup_s or sizing.USUAL_STARTUP_S
        rise = season.rise(self.now, startup_s)
        factor = rise * sizing.margin(feedback, allowed, max(0.0, self.now - bank.since), startup_s)
        if self._budget_left is not None and self._budget_left < sizing.LOW_BUDGET:
            allowed = [share / 2 for share in allowed]
        spare = [self.ledger.budget_spare(slo) for slo in self.spec.slos]
        growth = bank.growth(startup_s)
        return sizing.size(bank, self._sizes, allowed, factor, spare=spare, rise=rise, growth=growth)

    def situation(self, observation: Observation, sized: Sizing | None, num_overdue: int) -> Situation:
        """What the slow loop looks at beside the sizing."""
        seen = self.reading.signals
        ready, starting = observation.with_phase(Phase.READY), observation.with_phase(Phase.STARTING)
        return Situation.made(
            signals=seen,
            num_live=len(observation.replicas) - len(observation.with_phase(Phase.DRAINING)),
            num_ready=len(ready),
            num_starting=len(starting),
            num_overdue=num_overdue,
            startup_s=self._startup_s,
            budget_left=self._budget_left,
            catching_up=self._catching_up() if sized is not None else 0,
            patience_s=min(self._ttfts, default=0.0),
            allowance=observation.allowance,
        )

    def _catching_up(self) -> int:
        """Replicas that it takes to work off a real queue within a minute of their start; 0 while there is none.

        The virtual fleets have been ready all the time and have no queue from a start that takes long. Their margin is
        for what they cannot know, and what waits is seen.
        """
        seen, lengths = self.reading.signals, self.reading.lengths
        queue_s = self._limits_situation.queue_s
        if not self._ttfts or seen.arrivals_per_s is None or queue_s <= _REAL_QUEUE * min(self._ttfts):
            return 0
        tpots = [slo.tpot.threshold_milliseconds / 1000 for slo in self.spec.slos if slo.tpot]
        serves = capacity.requests_per_s(
            self.model, lengths, min(tpots, default=None), self.args.envelope.max_sequences, self._kv_tokens
        )
        startup_s = self._startup_s or sizing.USUAL_STARTUP_S
        demand = seen.arrivals_per_s / serves
        missing = max(0.0, demand - seen.num_serving) * startup_s
        asked = demand + (seen.queue / serves + missing) / _CATCH_UP_S
        # Those that serve stay for it, though nothing new comes: a drain has an end, and late requests may wait longer.
        return math.ceil(min(asked, max(_MOST_CATCHING_UP * demand, seen.num_serving)))

    @cached_property
    def _startup_s(self) -> float | None:
        """How long a start takes with some certainty; None until one was measured."""
        return self.ledger.startup_s(_STARTUP_SHARE)

    @cached_property
    def _budget_left(self) -> float | None:
        """Of the error budget, what the class with least has left."""
        return self.ledger.least_budget_left(self.spec.slos, self.now)

    @cached_property
    def _ttfts(self) -> list[float]:
        """TTFT thresholds in seconds, of the classes that have one."""
        return [slo.ttft.threshold_milliseconds / 1000 for slo in self.spec.slos if slo.ttft]

    @property
    def _kv_tokens(self) -> float:
        return self.reading.signals.kv_blocks * self.args.block_size

    @cached_property
    def _limits_situation(self) -> LimitsSituation:
        lengths, seen = self.reading.lengths, self.reading.signals
        return LimitsSituation.made(
            model=self.model,
            lengths=lengths,
            signals=seen,
            token_s=self.shape.token_seconds(self.model, lengths.prompt),
            long_prompt=self.shape.long_prompt(lengths.computed_prompt),
            target=self._target(),
            ttft_s=min(self._ttfts, default=None),
            num_ready=seen.num_serving,
            seconds=self.reading.seconds,
            kv_tokens=self._kv_tokens,
        )

    @property
    def _sizes(self) -> Array:
        return sizes(self.spec.scaling.highest_replicas)

    def _engine(self, limits: LimitsMemory) -> Engine:
        lengths, envelope, full_s = self.reading.lengths, self.args.envelope, limits.longest_s(self._limits_situation)
        is_adjusted = self.spec.scaling.batch_limits.mode is not LimitsMode.FIXED and full_s < inf
        decided = limits.limits or envelope.top
        return Engine(
            model=self.model,
            token_s=max(1e-9, self.shape.token_seconds(self.model, lengths.prompt)),
            # What the real fleet's budget is now says how many sequences that one has, and not what others would have.
            budget=envelope.max_batched_tokens if is_adjusted else decided.max_batched_tokens,
            full_s=full_s if is_adjusted else inf,
            kv_tokens=self._kv_tokens,
            max_sequences=decided.max_sequences,
            prompt=lengths.computed_prompt,
            long_prompt=self.shape.long_prompt(lengths.computed_prompt),
            output=max(1.0, lengths.output),
            context=max(1.0, self.shape.context or lengths.context),
        )

    def _arrived(self, counted: ClassCounters) -> Arrived:
        lengths = self.reading.lengths
        if counted.arrived_tokens <= 0:
            return Arrived(counted.arrived, counted.arrived * lengths.computed_prompt)
        return Arrived(counted.arrived, counted.arrived_tokens * (1 - lengths.cached))

    def _target(self) -> Target | None:
        """The tightest TPOT threshold, and answers and first tokens of all classes against their own."""
        with_tpot = [(slo, slo.tpot.threshold_milliseconds / 1000) for slo in self.spec.slos if slo.tpot]
        if not with_tpot:
            return None
        ended = late = begun = late_first = 0.0
        for slo in self.spec.slos:
            if slo.ttft:
                ttft = self.reading.delta.get(slo.name, NOTHING).ttft
                begun += ttft.total
                late_first += ttft.above(slo.ttft.threshold_milliseconds / 1000) / _allowed(slo)
        for slo, threshold_s in with_tpot:
            tpot = self.reading.delta.get(slo.name, NOTHING).tpot
            ended += tpot.total
            late += tpot.above(threshold_s) / (TPOT_SHARE * _allowed(slo))
        return Target.made(
            threshold_s=min(threshold_s for _, threshold_s in with_tpot),
            allowed=min(map(_allowed, self.spec.slos)),
            ended=ended,
            late=late,
            begun=begun,
            late_first=late_first,
        )


@lifelong
def _classes(spec: InferenceDeploymentSpec) -> tuple[Class, ...]:
    return tuple(
        Class(
            name=slo.name,
            priority=slo.priority,
            ttft_s=slo.ttft.threshold_milliseconds / 1000 if slo.ttft else inf,
            tpot_s=slo.tpot.threshold_milliseconds / 1000 if slo.tpot else inf,
        )
        for slo in spec.slos
    )


def _allowed(slo: Slo) -> float:
    """The share of its requests that may miss."""
    return max(_LEAST_ALLOWED, 1 - float(slo.objective_percent) / 100)
