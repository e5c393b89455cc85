"""One request as the scheduler sees it: its tokens, how many of them are computed, and the blocks it holds.

Knows nothing of other requests. Surprising idea: there is no prefill or decode state. A request has tokens (prompt plus
output) and *computed* tokens; every step lets the second catch up with the first. A preempted request is one whose
computed count went back to zero. And a token may be had before it is known: what a step in flight will draw counts as
`UNKNOWN`, so that the step after it can be planned.
"""

import enum
from dataclasses import dataclass, field
from typing import Final, Self

from capstan_engine.block_table import BlockTable, block_table
from capstan_engine.messages import FinishReason, SamplingParams, Submit, TokenLogprobs
from capstan_engine.scheduler.step import UNKNOWN

PRIORITY_LEVEL_S: Final = 30.0
"""Head start in the queue that one level of priority is worth, in seconds of waiting."""

LATE_HANDICAP_S: Final = 120.0
"""What a late first token costs in the queue: about as long as it takes until help comes, a replica that starts."""

Rank = tuple[float, int]
"""Order of service: smaller first. It is another one only while a first token is late."""


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
    arrival_rank: Rank
    """What it was at first, and is again from the first token on: an answer that has begun is not held up."""
    deadline: float | None
    first_token_due: float | None
    cache_salt: str
    max_length: int
    """Known tokens at which the request ends with `LENGTH`."""
    num_to_compute: int
    """Tokens that are computed at most: nothing follows the last one that the length allows."""
    token_ids: list[int]
    """The prompt, then the output; `UNKNOWN` where a step in flight draws."""
    num_known: int
    """Leading tokens that are known."""
    output_token_ids: list[int] = field(default_factory=list)
    status: Status = Status.WAITING
    judged_at: float | None = None
    """When it is asked again whether its first token can be in time; None once that is settled or has no threshold."""
    num_planned: int = 0
    """Leading tokens whose K and V will lie in the block table when all steps in flight have run."""
    num_computed: int = 0
    """Those of which this has been committed."""
    block_table: BlockTable = field(default_factory=block_table)
    block_keys: list[bytes] = field(default_factory=list)
    """Prefix-cache keys of the leading full blocks, as far as they were needed yet."""
    num_published: int = 0
    """Leading blocks that the prefix cache has seen."""
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at the first admission."""
    first_scheduled_time: float | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """By position, collected chunk by chunk; None when not asked for, and after delivery with the first output."""

    @classmethod
    def from_submit(cls, submit: Submit, number: int, max_model_len: int) -> Self:
        """The waiting request for `submit`; `number` counts submissions and breaks ties of rank."""
        num_prompt_tokens = len(submit.prompt_token_ids)
        max_length = min(num_prompt_tokens + submit.params.max_tokens, max_model_len)
        rank = (submit.arrival_time - submit.priority * PRIORITY_LEVEL_S, number)
        return cls(
            id=submit.request_id,
            prompt_token_ids=submit.prompt_token_ids,
            params=submit.params,
            arrival_time=submit.arrival_time,
            rank=rank,
            arrival_rank=rank,
            deadline=submit.deadline,
            first_token_due=submit.first_token_due,
            cache_salt=submit.cache_salt,
            max_length=max_length,
            num_to_compute=max(num_prompt_tokens, max_length - 1),
            token_ids=list(submit.prompt_token_ids),
            num_known=num_prompt_tokens,
            prompt_logprobs=None if submit.params.prompt_logprobs is None else [None],
        )

    @property
    def num_unplanned(self) -> int:
        """Tokens that are left for the next step. A running request without any waits for its end."""
        return min(len(self.token_ids), self.num_to_compute) - self.num_planned

    @property
    def num_output(self) -> int:
        """Output tokens that are known."""
        return self.num_known - len(self.prompt_token_ids)

    def fall_back(self) -> None:
        """Its first token will be late: behind those of its class that can still be in time."""
        moment, number = self.rank
        self.rank = moment + LATE_HANDICAP_S, number

    def restart(self) -> None:
        """Forget what was computed, not what is known. The blocks have been given back."""
        # A new list: by it a step in flight is told from those after the restart.
        self.block_table = block_table()
        self.num_planned = self.num_computed = self.num_published = 0

    def promise(self) -> None:
        """The step being planned will draw the next token."""
        self.token_ids.append(UNKNOWN)
        self.output_token_ids.append(UNKNOWN)

    def learn(self, token_id: int) -> FinishReason | None:
        """The first unknown token is this one; returns why it is the last, if it is."""
        self.token_ids[self.num_known] = token_id
        self.output_token_ids[self.num_output] = token_id
        self.num_known += 1
        if token_id in self.params.stop_token_ids and self.num_output > self.params.min_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if self.num_known >= self.max_length else None
