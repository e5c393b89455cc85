"""From requests to the rules by which their tokens are chosen; the choosing is the backend's.

Stop ids before `min_tokens` are a bias of -inf, so that a backend knows one way of forbidding a token and no requests.
"""

import math
from collections.abc import Callable

from capstan_engine.kernels import Draw, Penalties
from capstan_engine.scheduler.step import UNKNOWN, ScheduledRequest


def draw_of(request: ScheduledRequest, reference: Callable[[str], int]) -> Draw:
    """The rules for the next token of `request`.

    `reference` gives the id that stands for a request's `UNKNOWN` token, as in `Penalties.output`.
    """
    params, position = request.params, request.position
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
        _penalties(request, reference),
        bias,
    )


def _penalties(request: ScheduledRequest, reference: Callable[[str], int]) -> Penalties | None:
    params = request.params
    if params.repetition_penalty == 1 and params.presence_penalty == 0 and params.frequency_penalty == 0:
        return None
    output = request.output_token_ids[: request.position]
    if output and output[-1] == UNKNOWN:
        output[-1] = reference(request.request_id)
    return Penalties(
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
        request.prompt_token_ids,
        output,
    )
