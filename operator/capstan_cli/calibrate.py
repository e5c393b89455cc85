"""The step model of a live engine: its own step samples, collected while a load runs, and the fit of them.

Knows no load. The file that it writes is a JSON patch (RFC 6902) of an InferenceDeployment: `kubectl patch` and
Kustomize put it where the operator reads it, and `capstan simulate` reads it from the resource or from the file.
"""

import asyncio
import math
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from capstan_cli import output
from capstan_cli.errors import CliError, Unreachable
from capstan_cli.measure import Outcome
from capstan_operator.admin import AdminClient
from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide.seen.steps import StepSample
from capstan_operator.errors import AdminError
from capstan_operator.settings import OperatorSettings
from capstan_sim.calibration import Fit, fitted
from capstan_sim.errors import SimulationError

# An engine remembers its last 4096 steps, which are never made within this time.
_INTERVAL_S: Final = 1.0
_MOST_STEPS: Final = 4096


class Collector:
    """An async context manager: while it is open, it collects the steps that the engine takes from then on.

    Entering raises `Unreachable` when the admin port does not answer or refuses the token. What fails later is told
    by `fit`.
    """

    def __init__(self, admin_url: str, token: str) -> None:
        self._url = admin_url.rstrip("/")
        self._http = BoundedHttp(OperatorSettings())
        self._admin = AdminClient(self._http, token)
        self._kv_tokens = 0
        self._steps: list[StepSample] = []
        self._last = 0
        self._fault: str | None = None

    async def __aenter__(self) -> Self:
        try:
            self._kv_tokens = await self._admin.kv_tokens(self._url)
            # What the engine did before is another load's.
            while earlier := await self._admin.steps(self._url, after=self._last, limit=_MOST_STEPS):
                self._last = earlier[-1].number
        except AdminError as error:
            await self._http.close()
            raise Unreachable(f"{error}; --engine-admin must be the engine's own admin port") from None
        self._task = asyncio.create_task(self._collect())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._look()
        await self._http.close()

    def fit(self, outcomes: Iterable[Outcome]) -> Fit:
        """The model of the steps so far and of the requests that asked for them; raises `CliError` when they tell too
        little.
        """
        try:
            return fitted(self._steps, self._kv_tokens).around(alone(outcomes))
        except SimulationError as error:
            fault = f" (the last look failed: {self._fault})" if self._fault else ""
            raise CliError(f"no step model: {error}{fault}; give more load, or load for longer") from None

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            await self._look()

    async def _look(self) -> None:
        try:
            steps = await self._admin.steps(self._url, after=self._last, limit=_MOST_STEPS)
        except AdminError as error:
            # The next look brings what this one has missed.
            self._fault = str(error)
            return
        self._fault = None
        self._steps += steps
        self._last = steps[-1].number if steps else self._last


def alone(outcomes: Iterable[Outcome]) -> Iterator[tuple[int, float]]:
    """Prompt tokens and TTFT of those that came when nobody else was there, and had their first token before anybody
    else came.
    """
    requests = sorted(outcomes, key=lambda each: each.sent_s)
    busy_until = -math.inf
    for request, after in zip_longest(requests, requests[1:]):
        ttft_s, tokens = request.ttft_s, request.prompt_tokens
        is_first = request.sent_s >= busy_until
        if is_first and ttft_s is not None and tokens and (after is None or after.sent_s >= request.sent_s + ttft_s):
            yield tokens, ttft_s
        busy_until = max(busy_until, request.ended_s)


def write(path: Path, fit: Fit) -> None:
    """The model as a JSON patch; raises `InputError`."""
    output.write_json(path, fit.model.patch())


def sentence(fit: Fit) -> str:
    """What was fitted, for people."""
    model = fit.model
    return (
        f"step model of {fit.num_steps} steps, typically {fit.error:.1%} off: {1e3 * model.base_s:.2f} ms"
        f" + {1e6 * model.prefill_token_s:.2f} µs per prefill token + {1e6 * model.sequence_s:.1f} µs per sequence"
        f" + {1e9 * model.context_token_s:.2f} ns per context token + {1e9 * model.attention_pair_s:.3f} ns per pair;"
        f" {1e3 * model.outside_s:.1f} ms of a request outside of steps; {model.kv_tokens:,} tokens of KV"
    )
