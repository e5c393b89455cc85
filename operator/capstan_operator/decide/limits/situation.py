"""What the fast loop looks at in one adjustment: the engines, the queue, and answers against their thresholds.

Decides nothing. The surprising idea: lateness is counted in units of what the objectives allow, so that classes with
different percentiles add up, and a miss of TTFT can be weighed against one of TPOT.
"""

from typing import Final

from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.seen.signals import Lengths, Signals
from capstan_operator.decide.values import Value

TPOT_SHARE: Final = 0.3
"""Of what an objective allows, the share that TPOT may use up; the rest is for the TTFT."""

# Of the TTFT threshold.
_QUEUE: Final = 0.4


class Target(Value):
    """The tightest TPOT threshold, and how answers since the last turn stand to their own."""

    threshold_s: float
    allowed: float = 0.01
    """The least share of requests that may miss, of all classes."""
    ended: float = 0
    late: float = 0
    """In units of what the classes' objectives let TPOT have: as many as `ended` use it up."""
    begun: float = 0
    late_first: float = 0
    """First tokens, and those that came late, in units of what the objectives allow."""


class Situation(Value):
    """Everything that the fast loop looks at in one adjustment."""

    model: EngineModel
    lengths: Lengths
    signals: Signals
    token_s: float
    """Seconds per prefill token at the usual depth."""
    long_prompt: float = 0
    """Mean of the prompt tokens to be computed, prompts weighing by their length; 0 when not known."""
    target: Target | None = None
    ttft_s: float | None = None
    """The tightest TTFT threshold."""
    num_ready: int = 1
    seconds: float = 0
    """Since the last turn."""
    kv_tokens: float = 0
    """KV slots of one replica; 0 when not known."""
    is_warming: bool = False
    """Others are being started beside those that serve."""

    @property
    def is_known(self) -> bool:
        return self.signals.gateway_seen and self.model.is_usable and self.lengths.is_known

    @property
    def base_s(self) -> float:
        """A step of the sequences that decode now, without any prefill."""
        return self.model.step_seconds(0, self.signals.decode_sequences, self.signals.context_tokens)

    @property
    def is_lost(self) -> bool:
        """Whether prompts that come now will miss their TTFT, however long the steps are made."""
        return self.ttft_s is not None and self.queue_s > self.ttft_s

    @property
    def is_queueing(self) -> bool:
        """Whether prompts wait for so long that their TTFT is in danger: for engines, or for one that starts."""
        nobody_serves = self.num_ready == 0 and self.signals.held > 0
        return self.ttft_s is not None and (nobody_serves or self.queue_s > _QUEUE * self.ttft_s)

    @property
    def queue_s(self) -> float:
        """How long the prompts that wait take to be computed."""
        waiting = self.signals.prefill_backlog + self.signals.held * self.lengths.computed_prompt
        return self.token_s * waiting / max(1, self.num_ready)

    @property
    def prefill_load(self) -> float:
        """Seconds of prefill that come to one replica per second."""
        work_s = self.token_s * self.lengths.computed_prompt * (self.signals.arrivals_per_s or 0.0)
        return work_s / max(1, self.num_ready)
