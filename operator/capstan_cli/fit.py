"""A trace thinned to the machine that serves it: one demonstration, the same course on a slow and a fast machine.

The rate of a burst of the trace's own requests, sent at once to the first replica, says what a replica can do. Nothing
is sped up or invented: fewer of the real requests are kept, evenly.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiohttp

from capstan_cli import generator, traffic
from capstan_cli.errors import CliError
from capstan_cli.generator import Target
from capstan_cli.measure import Result
from capstan_cli.traffic import Arrival

# Long enough to fill a batch, short enough to be over before anybody scales for it.
_BURST = 16


@dataclass(frozen=True)
class Fit:
    """What was measured, and what was done about it. Rates are requests/s."""

    served_rate: float
    trace_peak_rate: float
    kept_share: float

    def facts(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}


async def served_rate(client: aiohttp.ClientSession, target: Target, arrivals: Sequence[Arrival]) -> float:
    """Requests/s at which a burst of requests like `arrivals` is served; raises `CliError` when one fails."""
    like_the_trace = arrivals[:: max(len(arrivals) // _BURST, 1)][:_BURST]
    burst = [replace(arrival, at_s=0.0) for arrival in like_the_trace]
    # Another seed: the replay's prompts must not find this burst in the prefix cache.
    outcomes = await generator.replay(client, replace(target, seed=target.seed + 1), burst)
    for outcome in outcomes:
        if outcome.result is not Result.COMPLETED:
            raise CliError(
                f"a request of the burst that measures this machine ended as {outcome.result}: {outcome.detail}"
            )
    return len(outcomes) / max(outcome.ended_s for outcome in outcomes)


def fitted(arrivals: Sequence[Arrival], rate: float, peak_load: float) -> tuple[list[Arrival], Fit]:
    """The share of `arrivals` whose busiest seconds bring `peak_load` times `rate`; all when that is not enough."""
    peak = traffic.peak_rate(arrivals)
    share = min(peak_load * rate / peak, 1.0)
    kept = traffic.thinned(arrivals, share)
    if not kept:
        raise CliError(f"one replica serves {rate:.2g} requests/s: too slow for any request of this trace")
    return kept, Fit(rate, peak, share)
