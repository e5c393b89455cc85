"""Accelerators that several resources share: who takes part in which budget, and what each may have now.

Knows what every loop last decided, and from the API server's own words those whose loop has not turned yet, as after a
restart: they keep what they have until they speak for themselves. Divides nothing itself, `decide.budget` does; asks no
clock. Nothing here has to be remembered: a division follows from what there is.

The surprising idea: a loop is told its share before it decides and says what it decided before anybody else is asked,
with nothing in between. So two loops never spend the same accelerator, and no lock is needed.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import Field, ValidationError

from capstan_api.contract import Contract, Name
from capstan_api.spec import Accelerator
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.scaling.budget import Claim, divide
from capstan_operator.decide.scaling.demand import Demand
from capstan_operator.decide.seen.observation import Allowance, Observation, Phase

DIVIDED_EVERY_S: Final = 5.0
Manifest = Mapping[str, Any]


class AcceleratorBudget(Contract):
    """Accelerators that the replicas of several resources share."""

    name: Name = Field(description="Its name, as it appears in decisions and conditions.")
    resource_name: str = Field(
        default="nvidia.com/gpu", min_length=1, description="Of `resources.accelerator.resourceName`."
    )
    node_selector: dict[str, str] = Field(
        default={},
        description="Labels that a resource's `scheduling.nodeSelector` must have to take part, such as the product; "
        "none for every resource that asks for such accelerators.",
    )
    accelerators: int = Field(ge=0, description="How many there are to be divided.")

    def has(self, resource_name: str, node_selector: Mapping[str, str]) -> bool:
        """Whether replicas that ask for this, on such nodes, take part."""
        return resource_name == self.resource_name and self.node_selector.items() <= node_selector.items()


@dataclass
class _Table:
    """One budget, who takes part in it, and the division in force."""

    declared: AcceleratorBudget
    claims: dict[str, Claim] = field(default_factory=dict)
    shares: dict[str, int] = field(default_factory=dict)
    divided_at: float = float("-inf")


class Budgets:
    """All budgets of one operator. `known` gives the manifests of all resources that there are."""

    def __init__(
        self, declared: Iterable[AcceleratorBudget], known: Callable[[], Iterable[Manifest]] = lambda: ()
    ) -> None:
        self._tables = [_Table(budget) for budget in declared]
        self._known = known

    def allowance(
        self, deployment: InferenceDeployment, observation: Observation, memory: Memory, now: float
    ) -> Allowance | None:
        """What the resource may have; None for one that takes part in no budget.

        To be asked right before a decision from this observation and memory.
        """
        key, accelerator = _key(deployment), deployment.spec.variant.resources.accelerator
        table = self._table(accelerator, deployment.spec.scheduling.node_selector)
        self._leave(key, table)
        if table is None or accelerator is None:
            return None
        # A clock that was set back does not keep a division in force.
        if key not in table.shares or not 0 <= now - table.divided_at < DIVIDED_EVERY_S:
            newcomer = Claim(_kept(deployment, observation, memory), accelerator.count)
            claims = {**self._strangers(table), key: newcomer, **table.claims}
            table.shares, table.divided_at = divide(table.declared.accelerators, claims), now
        return Allowance(
            budget=table.declared.name,
            replicas=table.shares[key],
            most=table.declared.accelerators // accelerator.count,
        )

    def decided(self, deployment: InferenceDeployment, demand: Demand | None) -> None:
        """What came of it. To be told right after the decision."""
        accelerator = deployment.spec.variant.resources.accelerator
        table = self._table(accelerator, deployment.spec.scheduling.node_selector)
        if table is not None and accelerator is not None and demand is not None:
            table.claims[_key(deployment)] = Claim(demand, accelerator.count)

    def gone(self, namespace: str, name: str) -> None:
        """Nobody looks after the resource any more."""
        self._leave(f"{namespace}/{name}", None)

    def _leave(self, key: str, stays_at: _Table | None) -> None:
        for table in self._tables:
            if table is not stays_at:
                table.claims.pop(key, None)
                table.shares.pop(key, None)

    def _table(self, accelerator: Accelerator | None, node_selector: Mapping[str, str]) -> _Table | None:
        if accelerator is None:
            return None
        return next((t for t in self._tables if t.declared.has(accelerator.resource_name, node_selector)), None)

    def _strangers(self, table: _Table) -> dict[str, Claim]:
        """Those at the table of whom no decision is known, as the API server describes them."""
        claims = {}
        for manifest in self._known():
            metadata, spec = manifest["metadata"], manifest.get("spec") or {}
            resources = (spec.get("variants") or [{}])[0].get("resources") or {}
            try:
                accelerator = Accelerator.model_validate(resources["accelerator"])
            except (KeyError, ValidationError):
                continue
            if self._table(accelerator, (spec.get("scheduling") or {}).get("nodeSelector") or {}) is table:
                status, scaling = manifest.get("status") or {}, spec.get("scaling") or {}
                leaving = status.get("drainingReplicas", 0)
                # A new one, whose status answers nothing yet, begins with its least, or with one that may idle later.
                least = max(1, scaling.get("minReplicas", 1))
                wanted = status.get("desiredReplicas", 0) if status.get("observedGeneration") else least
                demand = Demand.standing(wanted, status.get("replicas", 0) - leaving, leaving)
                claims[f"{metadata['namespace']}/{metadata['name']}"] = Claim(demand, accelerator.count)
        return claims


def _kept(deployment: InferenceDeployment, observation: Observation, memory: Memory) -> Demand:
    """Of one that has just come, or whose operator has: what it wanted before, else what it begins with."""
    leaving = len(observation.with_phase(Phase.DRAINING))
    live = len(observation.replicas) - leaving
    wanted = memory.replicas.wanted
    first = max(1, deployment.spec.scaling.min_replicas, live)
    return Demand.standing(first if wanted is None else wanted, live, leaving)


def _key(deployment: InferenceDeployment) -> str:
    return f"{deployment.metadata.namespace}/{deployment.metadata.name}"
