"""One decision as a value: what to do, what people are told, and what the next decision must remember."""

from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_operator.decide.actions import Action
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.signals import Signals
from capstan_operator.decide.values import Value


class Decision(Value):
    """Made by `decide`; equal inputs give an equal decision."""

    at: float
    actions: tuple[Action, ...]
    """In the order in which they should be carried out."""
    said: DecisionStatus
    """The decision for people: the most important change, or the hold and its reason."""
    changes: tuple[DecisionStatus, ...]
    """Everything that changed in this turn; empty for a hold."""
    signals: Signals
    memory: Memory
    status: InferenceDeploymentStatus
    """All but `status.memory`, which is `memory.durable()` and too long to be made in every turn."""
    revisions: frozenset[str] = frozenset()
    """Those that replicas may be started of, now or after a rollback."""
