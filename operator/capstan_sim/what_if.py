"""A question to the simulator: these requests, this resource, this hardware. Asked of one policy after another.

The question knows policies by name only: `capstan` is the real law under the resource as it is, and
`capstan_replicas_only` the same law with limits that stay at those of the peers, or with the token budget that is named
after a colon. Every other name is a reference policy, which gets the resource's bounds and thresholds and leaves the
limits alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from capstan_api.limits import BatchLimits
from capstan_api.scaling import LimitsMode
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import render
from capstan_sim import events as befalling
from capstan_sim import policies
from capstan_sim.book import Book
from capstan_sim.control_plane import ControlPlane, objectives
from capstan_sim.engine import Engine
from capstan_sim.errors import SimulationError
from capstan_sim.events import Event
from capstan_sim.exact import ExactReplica
from capstan_sim.policy import Objective, Setting
from capstan_sim.replica import Replica
from capstan_sim.router import Rule
from capstan_sim.simulation import Controller, Record, TargetController, simulate
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

LAW: Final = "capstan"
REPLICAS_ONLY: Final = "capstan_replicas_only"
"""The law without its fast loop: limits stay where they stay for the peers."""
LAWS: Final = (LAW, REPLICAS_ONLY)
PEER_LIMITS: Final = BatchLimits(max_sequences=256, max_batched_tokens=1024)
"""Hand-picked for policies that leave the limits alone; the resource's envelope may narrow them."""


@dataclass(frozen=True)
class WhatIf:
    """`cold_start_s` is from launch to ready; `initial_replicas` are ready at 0; `is_exact` asks the real scheduler.

    `rule` says which replica gets a request.
    """

    workload: Workload
    deployment: InferenceDeployment
    model: StepModel
    cold_start_s: float = 120.0
    initial_replicas: int = 1
    events: tuple[Event, ...] = ()
    is_exact: bool = False
    rule: Rule = Rule.GATEWAY

    @property
    def objectives(self) -> dict[str, Objective]:
        """Of the SLO classes, by name."""
        slos = self.deployment.spec.slos
        return {slo.name: objective for slo, objective in zip(slos, objectives(self.deployment), strict=True)}

    def check(self, policy: str) -> None:
        """Raises `SimulationError` when there is no such policy."""
        self._controller(policy, self.setting(policy))

    def ask(self, policy: str, progress: Callable[[float], None] | None = None) -> Record:
        """What would have come of it under `policy`; raises `SimulationError`."""
        setting = self.setting(policy)
        engine: Callable[[StepModel, BatchLimits, Book], Engine] = Replica
        if self.is_exact:
            block_size = self.deployment.spec.engine.kv_cache.block_size
            engine = partial(ExactReplica, block_size=block_size)
            # Only whole blocks hold anything.
            whole = setting.model.kv_tokens // block_size * block_size
            setting = replace(setting, model=setting.model.holding(whole))
        return simulate(
            self.workload,
            setting,
            self._controller(policy, setting),
            priorities=tuple(slo.priority for slo in self.deployment.spec.slos),
            ttft_s=setting.rule.told(objective.ttft_s for objective in self.objectives.values()),
            engine=engine,
            prepare=partial(befalling.prepare, events=self.events),
            blind=befalling.blind_spans(self.events),
            progress=progress,
        )

    def _controller(self, policy: str, setting: Setting) -> Controller:
        if policy == LAW:
            return ControlPlane(self.deployment)
        if policy.partition(":")[0] == REPLICAS_ONLY:
            return ControlPlane(_with_fixed_limits(self.deployment, setting.limits))
        return TargetController(policies.build(policy, setting, LAWS))

    def setting(self, policy: str) -> Setting:
        """What `policy` may know beforehand."""
        envelope = render.envelope(self.deployment)
        classes = list(self.objectives.values())
        name, _, count = policy.partition(":")
        # A fleet that never changes is there from the beginning.
        initial = int(count) if name == policies.STATIC and count.isdecimal() else self.initial_replicas
        return Setting(
            model=self.model,
            # One fleet serves all classes, so a policy that knows one objective gets the tightest of each kind.
            objective=Objective(min(o.ttft_s for o in classes), min(o.tpot_s for o in classes)),
            mean_prompt=float(self.workload.prompt.mean()),
            mean_output=float(self.workload.output.mean()),
            max_replicas=self.deployment.spec.scaling.max_replicas,
            cold_start_s=self.cold_start_s,
            initial_replicas=initial,
            limits=envelope.top if policy == LAW else envelope.clamp(_peer_limits(policy)),
            rule=self.rule,
        )


def _peer_limits(policy: str) -> BatchLimits:
    """Those of a policy that leaves them alone; raises `SimulationError`."""
    name, colon, tokens = policy.partition(":")
    if name != REPLICAS_ONLY or not colon:
        return PEER_LIMITS
    if not tokens.isdecimal() or int(tokens) < 1:
        raise SimulationError(f"policy {policy!r}: the token budget after the colon must be an integer such as 2048")
    return PEER_LIMITS.model_copy(update={"max_batched_tokens": int(tokens)})


def _with_fixed_limits(deployment: InferenceDeployment, limits: BatchLimits) -> InferenceDeployment:
    """The same resource with engines that are started at `limits`, and stay there."""
    spec = deployment.spec
    fixed = {"max_sequences": limits.max_sequences, "max_batched_tokens": limits.max_batched_tokens}
    engine = spec.engine.model_copy(update={"batching": spec.engine.batching.model_copy(update=fixed)})
    policy = spec.scaling.batch_limits.model_copy(update={"mode": LimitsMode.FIXED})
    scaling = spec.scaling.model_copy(update={"batch_limits": policy})
    return deployment.model_copy(update={"spec": spec.model_copy(update={"engine": engine, "scaling": scaling})})
