"""What a decision hands to the next one.

All of it is small but the window of counters, which is left out of the form that survives a restart (`durable`): it is
filled again within seconds, while the fitted model, the streaks and the error budgets took long to learn.
"""

from typing import Any, Final

from pydantic import ValidationError

from capstan_api.status import DecisionStatus
from capstan_operator.decide.feasibility import Told
from capstan_operator.decide.fleets.bank import Bank
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.season import Season
from capstan_operator.decide.fleets.shape import Shape
from capstan_operator.decide.ledger import Ledger
from capstan_operator.decide.limits.memory import LimitsMemory
from capstan_operator.decide.progress import RolloutMemory
from capstan_operator.decide.scaling.replicas import ReplicasMemory
from capstan_operator.decide.scaling.sizing import Feedback
from capstan_operator.decide.seen.signals import Lengths
from capstan_operator.decide.seen.window import Window
from capstan_operator.decide.values import Value

# What is filled again within seconds, or compares with what is.
_NOT_KEPT: Final[dict[str, Any]] = {"window": True, "limits": {"canary": {"marks", "begun"}}}


class Memory(Value):
    """State of the law for one deployment; the default is that of a deployment never seen before."""

    at: float = 0
    """Moment of the decision that wrote this."""
    revision: str = ""
    """In force; after a rollback not the one that the resource asks for."""
    rollout: RolloutMemory = RolloutMemory()
    model: EngineModel = EngineModel()
    lengths: Lengths = Lengths()
    shape: Shape = Shape()
    bank: Bank = Bank()
    feedback: tuple[Feedback, ...] = ()
    """Of each class, in the bank's order."""
    season: Season = Season()
    told: Told | None = None
    """What the model takes of memory, for whoever asks for it in another envelope."""
    limits: LimitsMemory = LimitsMemory()
    replicas: ReplicasMemory = ReplicasMemory()
    ledger: Ledger = Ledger()
    recommendation: DecisionStatus | None = None
    """Of mode Shadow; while nothing but its figures would change, the one that began it."""
    window: Window = Window()

    def durable(self) -> str:
        """JSON for `status.memory`, a few kilobytes whatever the number of replicas."""
        return self.changed(bank=self.bank.durable()).to_json(exclude=_NOT_KEPT)

    @classmethod
    def restored(cls, text: str) -> "Memory":
        """The memory in `status.memory`; a fresh one when there is none or another version wrote it."""
        if not text:
            return cls()
        try:
            return cls.from_json(text)
        except ValidationError:
            return cls()
