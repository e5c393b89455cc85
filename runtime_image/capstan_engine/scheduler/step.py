"""What the scheduler tells the runner to do in one step, and what the runner answers: plain values, no tensors.

One `ScheduledRequest` is made per request and step, which is why it is a struct: it is built ten times faster than a
frozen dataclass. It has no reference cycles, so the garbage collector need not look at it.
"""

from dataclasses import dataclass, field
from typing import Final

import msgspec

from capstan_engine.block_table import BlockTable
from capstan_engine.messages import SamplingParams, TokenLogprobs

UNKNOWN: Final = -1
"""Stands for a token that the step before draws, whose result has not been committed yet."""


class ScheduledRequest(msgspec.Struct, frozen=True, gc=False):
    """One request's part of a step: compute `token_ids` at positions `start ..`, K and V into `block_table`."""

    request_id: str
    token_ids: list[int]
    """The last one may be `UNKNOWN`."""
    start: int
    """Position of the first of `token_ids`; that many tokens of the request are already in the KV cache."""
    block_table: BlockTable
    """Physical blocks of the request, long enough for `start + len(token_ids)` tokens."""
    params: SamplingParams
    samples: bool
    """True when the step reaches the last known token, so that a new token is drawn from the last position's logits."""
    prompt_token_ids: list[int]
    """The whole prompt, for penalties. The scheduler's own list: do not change it."""
    output_token_ids: list[int]
    """The output, for penalties: that before the token to draw is the first `position`. Do not change it."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def position(self) -> int:
        """Of the token to draw, in the request's output."""
        return self.start + len(self.token_ids) - len(self.prompt_token_ids)


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Empty when there is nothing to compute."""

    scheduled: tuple[ScheduledRequest, ...] = ()
    num_prefill_tokens: int = 0
    num_decodes: int = 0
    """Requests in the step that compute exactly one token beyond their prompt."""
    context_tokens: int = 0
    """Sum of context lengths over the decodes."""
    attention_pairs: int = 0
    """Query-key pairs of the prefill chunks: k (p + k/2) for a chunk of k tokens at depth p."""

    def __bool__(self) -> bool:
        return bool(self.scheduled)

    @property
    def num_tokens(self) -> int:
        return sum(s.num_tokens for s in self.scheduled)


class Sampled(msgspec.Struct, frozen=True, gc=False):
    """What the runner drew for one scheduled request with `samples`."""

    token_id: int
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """The runner's answer to a plan, by request id."""

    sampled: dict[str, Sampled] = field(default_factory=dict)
    prompt_logprobs: dict[str, list[TokenLogprobs]] = field(default_factory=dict)
    """For chunks of requests that asked: the log probabilities of the tokens at positions start+1 .. start+len(chunk)
    (as far as the prompt reaches)."""
    errors: dict[str, str] = field(default_factory=dict)
    """Requests that failed alone (for instance non-finite logits); the others are unaffected."""
