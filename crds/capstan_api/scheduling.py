"""`spec.scheduling`: on which nodes replicas may run, in the words of a pod.

Knows what an API server would refuse in a pod, so that it is refused where a person wrote it.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from capstan_api.contract import Contract, ObjectName, Rule

_LabelKey = Annotated[str, StringConstraints(max_length=317)]
_LabelValue = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]


class TolerationOperator(StrEnum):
    """How a taint is compared."""

    EXISTS = "Exists"
    EQUAL = "Equal"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(Contract):
    """A taint that replicas bear with."""

    key: _LabelKey | None = Field(default=None, description="Key of the taint; absent means every one.")
    operator: TolerationOperator = Field(
        default=TolerationOperator.EQUAL, description="Exists asks for the key only, Equal for key and value."
    )
    value: _LabelValue | None = Field(default=None, description="Value of the taint, with operator Equal.")
    effect: TaintEffect | None = Field(default=None, description="Effect of the taint; absent means every one.")
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="With effect NoExecute: how long a replica stays once the taint is there."
    )

    rules = (
        Rule(
            cel="self.operator == 'Equal' ? has(self.key) : !has(self.value)",
            holds=lambda t: t.key is not None if t.operator is TolerationOperator.EQUAL else t.value is None,
            message="operator Equal needs a key, and operator Exists takes no value",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            holds=lambda t: t.toleration_seconds is None or t.effect is TaintEffect.NO_EXECUTE,
            message="tolerationSeconds needs effect NoExecute",
        ),
    )


class Scheduling(Contract):
    """Where replicas may run. A change here starts a new revision."""

    node_selector: dict[str, _LabelValue] = Field(
        default_factory=dict, max_length=32, description="Labels that a node must have."
    )
    tolerations: list[Toleration] = Field(
        default_factory=list, max_length=32, description="Taints that replicas bear with."
    )
    priority_class_name: ObjectName | None = Field(
        default=None, description="PriorityClass of the replicas; absent means the cluster's default."
    )
