"""Puts one step together: hands out the token budget, and counts what the latency model wants to know of the step.

Knows no queue and no blocks: the scheduler calls `add` in the order in which it wants requests served.
"""

from capstan_engine.scheduler.request import Request
from capstan_engine.scheduler.step import ScheduledRequest, StepPlan


class StepBuilder:
    """A plan in the making: `budget` tokens are left to give."""

    def __init__(self, budget: int, now: float) -> None:
        self.budget = budget
        self.requests: list[Request] = []
        self._now = now
        self._scheduled: list[ScheduledRequest] = []
        self._num_prefill_tokens = 0
        self._num_decodes = 0
        self._context_tokens = 0
        self._attention_pairs = 0

    def add(self, request: Request) -> None:
        """Compute as many of the tokens that the request lacks as the budget allows."""
        start, length = request.num_planned, len(request.token_ids)
        num_tokens = min(request.num_unplanned, self.budget)
        end = start + num_tokens
        self.budget -= num_tokens
        if request.first_scheduled_time is None:
            request.first_scheduled_time = self._now
        if num_tokens == 1 and start >= len(request.prompt_token_ids):
            self._num_decodes += 1
            self._context_tokens += length
        else:
            self._num_prefill_tokens += num_tokens
            self._attention_pairs += num_tokens * (2 * start + num_tokens) // 2
        samples = end == length < request.max_length
        self.requests.append(request)
        self._scheduled.append(
            ScheduledRequest(
                request_id=request.id,
                token_ids=request.token_ids[start:end],
                start=start,
                block_table=request.block_table,
                params=request.params,
                samples=samples,
                prompt_token_ids=request.prompt_token_ids,
                output_token_ids=request.output_token_ids,
            )
        )
        request.num_planned = end
        if samples:
            request.promise()

    def plan(self) -> StepPlan:
        return StepPlan(
            scheduled=tuple(self._scheduled),
            num_prefill_tokens=self._num_prefill_tokens,
            num_decodes=self._num_decodes,
            context_tokens=self._context_tokens,
            attention_pairs=self._attention_pairs,
        )
