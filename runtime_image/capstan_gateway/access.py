"""The access log: one line on the log for each completion that was asked for, when it is over."""

import logging
import time

from capstan_api.access import Access
from capstan_gateway.incoming import Incoming
from capstan_gateway.metrics import Ended

logger = logging.getLogger(__name__)


def log(incoming: Incoming, ended: Ended, estimated_prompt_tokens: float, now: float) -> None:
    """`now` is on the clock of the request's arrival; the estimate counts where no engine has told the prompt's length.

    Engines tell it for whole answers, and for streams whose clients ask for usage.
    """
    usage = ended.usage
    access = Access(
        arrived_at=time.time() - (now - incoming.arrival),
        slo_class=incoming.slo_class.name,
        prompt_tokens=round(estimated_prompt_tokens) if usage.prompt_tokens is None else usage.prompt_tokens,
        output_tokens=usage.completion_tokens or 0,
        ttft_s=ended.ttft_s,
        tpot_s=ended.tpot_s,
        outcome=ended.outcome,
    )
    logger.info("%s", access.line())
