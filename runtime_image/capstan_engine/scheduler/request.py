"""One request as the scheduler sees it: its known tokens, how many of them are computed, and the blocks it holds.

Knows nothing of other requests. Surprising idea: there is no prefill or decode state. A request has *known* tokens
(prompt plus output) and *computed* tokens; every step lets the second catch up with the first. A preempted request is
one whose computed count went back to zero.
"""

import enum
from dataclasses import dataclass, field
from typing import Final, Self

from capstan_engine.messages import FinishReason, SamplingParams, Submit, TokenLogprobs

PRIORITY_LEVEL_S: Final = 30.0
"""Head start in the queue that one level of priority is worth, in seconds of waiting."""

Rank = tuple[float, int]
"""Order of service: smaller first. Fixed for a request's whole life."""


class Status(enum.Enum):
    """Where a request is. Only a running request holds blocks."""

    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(slots=True, eq=False)
class Request:
    """State of one request. Only the scheduler changes it."""

    id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float
    rank: Rank
    deadline: float | None
    cache_salt: str
    max_length: int
    """Known tokens at which the request ends with `LENGTH`."""
    token_ids: list[int]
    """Known tokens: the prompt, then the output."""
    output_token_ids: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    num_computed: int = 0
    """Leading tokens whose K and V lie in the block table."""
    block_table: list[int] = field(default_factory=list)
    block_keys: list[bytes] = field(default_factory=list)
    """Prefix-cache keys of the leading full blocks, as far as they were needed yet."""
    num_published: int = 0
    """Leading blocks that the prefix cache has seen."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the first admission."""
    first_scheduled_time: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Collected chunk by chunk; None when not asked for, and after delivery with the first output."""

    @classmethod
    def from_submit(cls, submit: Submit, number: int, max_model_len: int) -> Self:
        """The waiting request for `submit`; `number` counts submissions and breaks ties of rank."""
        num_prompt_tokens = len(submit.prompt_token_ids)
        return cls(
            id=submit.request_id,
            prompt_token_ids=submit.prompt_token_ids,
            params=submit.params,
            arrival_time=submit.arrival_time,
            rank=(submit.arrival_time - submit.priority * PRIORITY_LEVEL_S, number),
            deadline=submit.deadline,
            cache_salt=submit.cache_salt,
            max_length=min(num_prompt_tokens + submit.params.max_tokens, max_model_len),
            token_ids=list(submit.prompt_token_ids),
            prompt_logprobs=None if submit.params.prompt_logprobs is None else [None],
        )

    @property
    def num_uncomputed(self) -> int:
        return len(self.token_ids) - self.num_computed

    def restart(self) -> None:
        """Forget what was computed, not what is known. The blocks have been given back."""
        self.block_table = []
        self.num_computed = self.num_published = 0
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = [None]

    def append(self, token_id: int) -> FinishReason | None:
        """Take over a new token; returns why it is the last one, if it is."""
        self.token_ids.append(token_id)
        self.output_token_ids.append(token_id)
        if token_id in self.params.stop_token_ids and len(self.output_token_ids) > self.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.token_ids) >= self.max_length else None
