"""A trace replayed against a deployment that is just starting: wait for it, load it, watch it fall back.

Sees the deployment as its clients do, through the endpoint; from the frames it only learns when it may begin and when
the replicas have fallen back.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from capstan_cli import endpoint, fit, generator
from capstan_cli.frames import Frame
from capstan_cli.load import TraceLoad, longest
from capstan_cli.measure import Outcome
from capstan_cli.traffic import Arrival

# A request that has not ended by then is lost; far beyond any latency that a run is meant to show.
_REQUEST_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Replayed:
    """What came of it. `started_at` is epoch seconds."""

    started_at: float
    outcomes: list[Outcome]


class Replay:
    """One replay. `arrivals` are made (and found faulty) before anything is started."""

    def __init__(self, load: TraceLoad, settle_s: float, say: Callable[[str], None]) -> None:
        """Raises `InputError` when the trace or its options are wrong."""
        self.load = load
        self.arrivals: list[Arrival] = load.arrivals()
        self._settle_s = settle_s
        self._say = say
        self._turned = asyncio.Event()
        self._frame: Frame | None = None
        self._num_ended = 0
        self._fit: fit.Fit | None = None

    def facts(self) -> dict[str, Any]:
        """What a reader of the report must know to repeat the load."""
        return {**self.load.facts(self.arrivals), "fit": self._fit and self._fit.facts()}

    def see(self, frame: Frame) -> None:
        """Tell of the newest turn."""
        self._frame = frame
        self._turned.set()

    async def run(self) -> Replayed:
        """Wait for a ready replica, send the load, wait for the replicas to fall back. Raises `CliError`s."""
        self._say("Waiting for the first replica.")
        first = await self._until(lambda f: f.endpoint is not None and f.replicas_ready > 0)
        assert first.endpoint is not None
        async with endpoint.session(_REQUEST_TIMEOUT_S) as client:
            target = await generator.connect(
                client, first.endpoint, first.model, seed=self.load.seed, longest=longest(self.arrivals)
            )
            if self.load.peak_load is not None:
                self._say("Measuring what one replica serves.")
                rate = await fit.served_rate(client, target, self.arrivals)
                self.arrivals, self._fit = fit.fitted(self.arrivals, rate, self.load.peak_load)
                self._say(f"One replica serves {rate:.1f} requests/s; {self._fit.kept_share:.0%} of the trace is kept.")
            total, seconds = len(self.arrivals), self.arrivals[-1].at_s
            self._say(f"Replaying {total} requests of {self.load.path.name} over {seconds:.0f} s.")
            started_at = time.time()
            outcomes = await generator.replay(client, target, self.arrivals, self._ended)
        self._say(f"The load has ended; replicas may fall back for up to {self._settle_s:.0f} s.")
        try:
            async with asyncio.timeout(self._settle_s):
                await self._until(lambda f: f.replicas_ready <= first.replicas_ready == f.replicas_wanted)
        except TimeoutError:
            self._say(f"The replicas did not fall back within {self._settle_s:.0f} s.")
        return Replayed(started_at, outcomes)

    def _ended(self, _: Outcome) -> None:
        self._num_ended += 1
        if self._num_ended % 25 == 0:
            self._say(f"{self._num_ended} of {len(self.arrivals)} requests have ended.")

    async def _until(self, holds: Callable[[Frame], bool]) -> Frame:
        while True:
            if self._frame is not None and holds(self._frame):
                return self._frame
            self._turned.clear()
            await self._turned.wait()
