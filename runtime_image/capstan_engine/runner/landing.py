"""What a step brings back to the host: copies that are started with it, and the answer made of them when they are in.

Nothing is asked of the device before the whole step has been given to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from capstan_engine.messages import TokenLogprobs
from capstan_engine.runner.logprobs import Scores, token_logprobs
from capstan_engine.scheduler.step import Sampled, ScheduledRequest, StepResult


@dataclass(frozen=True, slots=True)
class Scored:
    """Log probabilities on the device, and whose they are."""

    request_ids: Sequence[str]
    """Of each row."""
    counts: Sequence[int]
    """Alternatives that each row asks for."""
    scores: Scores


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a step found, on the device."""

    drawing: Sequence[ScheduledRequest]
    tokens: torch.Tensor
    """int64, one for each of `drawing`; -1 where the logits were not finite."""
    of_outputs: Sequence[Scored]
    of_prompts: Sequence[Scored]
    """In the order of positions."""


def landing(findings: Findings) -> Callable[[], StepResult]:
    """Starts the copies. What is returned waits for them."""
    scored = [*findings.of_outputs, *findings.of_prompts]
    parts = [findings.tokens, *(part for each in scored for part in each.scores)]
    # To pinned memory, which torch has a cache of; always a copy, since the next step may use the place again.
    tokens, *numbers = (part.to("cpu", non_blocking=True, copy=True) for part in parts)
    event = torch.cuda.Event() if findings.tokens.is_cuda else None  # type: ignore[no-untyped-call]
    if event is not None:
        event.record()

    def land() -> StepResult:
        if event is not None:
            event.synchronize()
        width = len(Scores._fields)
        arrived = [Scores(*numbers[first : first + width]) for first in range(0, len(numbers), width)]
        return _result(findings, tokens.tolist(), arrived)

    return land


def _result(findings: Findings, tokens: Sequence[int], arrived: Sequence[Scores]) -> StepResult:
    outputs = _by_request(findings.of_outputs, arrived[: len(findings.of_outputs)])
    result = StepResult(prompt_logprobs=_by_request(findings.of_prompts, arrived[len(findings.of_outputs) :]))
    for request, token_id in zip(findings.drawing, tokens, strict=True):
        if token_id < 0:
            result.errors[request.request_id] = "the model's logits are not finite"
        else:
            (logprobs,) = outputs.get(request.request_id, (None,))
            result.sampled[request.request_id] = Sampled(token_id, logprobs)
    return result


def _by_request(scored: Sequence[Scored], arrived: Sequence[Scores]) -> dict[str, list[TokenLogprobs]]:
    entries: dict[str, list[TokenLogprobs]] = {}
    for each, scores in zip(scored, arrived, strict=True):
        for request_id, entry in zip(each.request_ids, token_logprobs(scores, each.counts), strict=True):
            entries.setdefault(request_id, []).append(entry)
    return entries
