"""From requests to the rules by which their tokens are chosen; the choosing is the backend's.

Stop ids before `min_tokens` are a bias of -inf, so that a backend knows one way of forbidding a token and no requests.
"""

import math
from collections.abc import Sequence

import torch

from capstan_engine.kernels import Draw, Kernels, Penalties
from capstan_engine.scheduler.step import ScheduledRequest


def sample(kernels: Kernels, logits: torch.Tensor, requests: Sequence[ScheduledRequest]) -> list[int | None]:
    """A token id for each row of `logits` `[n, V]`; None where the row is not finite. `logits` is left as it is."""
    tokens = kernels.choose_tokens(logits, [draw_of(request) for request in requests]).tolist()
    return [token if token >= 0 else None for token in tokens]


def draw_of(request: ScheduledRequest) -> Draw:
    """The rules for the next token of `request`."""
    params, position = request.params, len(request.output_token_ids)
    bias = params.logit_bias
    if position < params.min_tokens:
        bias = bias | dict.fromkeys(params.stop_token_ids, -math.inf)
    return Draw(
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        position,
        _penalties(request),
        bias,
    )


def _penalties(request: ScheduledRequest) -> Penalties | None:
    params = request.params
    if params.repetition_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0:
        return None
    return Penalties(
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        request.prompt_token_ids,
        request.output_token_ids,
    )
