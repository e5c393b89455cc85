"""The front end as one object: the engine's client, the loaded model's text side, lifecycle, metrics and limits.

Routes ask it; it knows no route. It exists before the model is loaded, so that probes and metrics answer from the first
moment. `load` joins tokenizer and engine core, which start side by side.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Final

import msgspec

from capstan_api.engine_args import EngineArgs, MetricsCompatibility
from capstan_api.footprint import MemoryFigures
from capstan_api.startup import StartupPhase, StartupReport
from capstan_engine.client import EngineClient
from capstan_engine.errors import EngineDead, RequestError
from capstan_engine.messages import CoreState, Loading
from capstan_engine.server.call import ModelNames
from capstan_engine.server.errors import ApiError
from capstan_engine.server.lifecycle import Lifecycle, Phase
from capstan_engine.server.limits import LeasedLimits
from capstan_engine.server.metrics import Metrics
from capstan_engine.server.prompts import Prompts
from capstan_engine.server.sampling import ModelFacts
from capstan_engine.server.step_log import StepRing
from capstan_engine.text import Tokenizer

HEARTBEAT_LIMIT_S: Final = 5.0
"""A core that has said nothing for so long is not healthy: clients should go elsewhere."""
STUCK_LIMIT_S: Final = 30.0
"""A core that has said nothing for so long will not come back: no step takes so long, and only a restart helps."""
LOADING_LIMIT_S: Final = 180.0
"""Loading that has read nothing for so long is stuck: slow storage delivers some tensor in that time."""


@dataclass(frozen=True)
class Model:
    """What the front end holds of a loaded model."""

    tokenizer: Tokenizer
    facts: ModelFacts
    prompts: Prompts
    figures: MemoryFigures


class FrontEnd:
    """One engine as its HTTP routes see it."""

    def __init__(self, args: EngineArgs, client: EngineClient) -> None:
        self.client = client
        self.lifecycle = Lifecycle()
        self.names = ModelNames(args.served_model_names, args.slo_classes)
        vllm = args.metrics_compatibility is MetricsCompatibility.VLLM
        self.metrics = Metrics(
            args.slo_classes, self._core_state, vllm_model_name=args.served_model_names[0] if vllm else None
        )
        self.limits = LeasedLimits(args.envelope, client.set_limits, self.metrics.limits_changed)
        self.steps = StepRing()
        self.max_model_len = args.max_model_len
        self.startup_seconds: dict[str, float] = {}
        self._model_dir = args.model
        self._block_size = args.block_size
        self._model: Model | None = None
        self.created = int(time())
        self._started = monotonic()
        self._loading = Loading(StartupPhase.LOADING)
        self._phase_since = time()
        self._last_progress = monotonic()
        client.on_update += [self.metrics.on_update, self.steps.on_update]
        client.on_loading.append(self._on_loading)

    @property
    def model(self) -> Model:
        """Raises `ApiError` 503 before it is loaded."""
        if self._model is None:
            raise ApiError(503, "The model is still loading.", code="loading", retry_after=5)
        return self._model

    async def load(self) -> None:
        """Start the core and load the tokenizer; then requests are accepted.

        Raises `ModelError`, `ConfigurationError` or `EngineDead` when either fails.
        """
        tokenizer, ready = await asyncio.gather(asyncio.to_thread(Tokenizer.load, self._model_dir), self.client.start())
        facts = ModelFacts.read(
            self._model_dir,
            tokenizer.eos_token_id,
            max_model_len=ready.max_model_len,
            vocab_size=ready.vocab_size,
        )
        figures = MemoryFigures.model_validate(ready.figures)
        self._model = Model(tokenizer, facts, Prompts(tokenizer, facts), figures)
        self.max_model_len = facts.max_model_len
        self.startup_seconds = ready.startup_seconds | {"total": monotonic() - self._started}
        self._phase_since = time()
        self.lifecycle.loaded()

    async def stalled(self) -> EngineDead:
        """Wait until loading has made no progress for `LOADING_LIMIT_S`; returns what it had come to."""
        while (left_s := self._last_progress + LOADING_LIMIT_S - monotonic()) > 0:  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(left_s)
        return EngineDead(f"start-up has made no progress for {LOADING_LIMIT_S:.0f} s ({self.startup().message})")

    async def watch(self) -> EngineDead:
        """Wait for the core's end and tell the lifecycle."""
        error = await self.client.died()
        self.lifecycle.died(str(error))
        return error

    def unhealthy(self) -> str | None:
        """Why this process is not healthy; None when it is. Loading and draining are healthy."""
        if self.lifecycle.phase is Phase.DEAD:
            return "The engine has stopped."
        silence = self.client.last_heartbeat_age_s
        if self._model is not None and silence > HEARTBEAT_LIMIT_S:
            return f"The engine has said nothing for {silence:.1f} s."
        return None

    def stuck(self) -> str | None:
        """Why this process must be started again; None when it need not be.

        A dead engine is no reason: the process ends itself, after its last words.
        """
        silence = self.client.last_heartbeat_age_s
        if self.lifecycle.phase in (Phase.READY, Phase.DRAINING) and silence > STUCK_LIMIT_S:
            return f"The engine is stuck: it has said nothing for {silence:.0f} s."
        return None

    def startup(self) -> StartupReport:
        """How far start-up has come."""
        if self._model is not None:
            return StartupReport(phase=StartupPhase.READY, message="It serves.", since=self._phase_since)
        done, total = self._loading.done_bytes, self._loading.total_bytes
        amount = f": {done / 1e9:.1f} of {total / 1e9:.1f} GB" if total else ""
        return StartupReport(
            phase=StartupPhase(self._loading.phase),
            done_bytes=done,
            total_bytes=total,
            message=f"{self._loading.phase}{amount}",
            since=self._phase_since,
        )

    @contextmanager
    def counting_refusals(self) -> Iterator[None]:
        """Counts a request that is refused before the engine has seen it."""
        try:
            yield
        except (ApiError, RequestError) as error:
            code = getattr(error, "code", None)
            refused_for_now = getattr(error, "status", 400) == 503
            too_large = code == "context_length_exceeded"
            self.metrics.rejected("draining" if refused_for_now else "too_large" if too_large else "invalid")
            raise

    def state(self) -> dict[str, Any]:
        """What the admin port shows."""
        return {
            **msgspec.to_builtins(self.client.state),
            "open_requests": self.lifecycle.num_open,
            "open_sequences": self.client.num_open,
            "phase": self.lifecycle.phase,
            "ready": self.lifecycle.phase is Phase.READY,
            "draining": self.lifecycle.phase is Phase.DRAINING,
            "heartbeat_age_seconds": self.client.last_heartbeat_age_s,
            "startup_seconds": self.startup_seconds,
            "uptime_seconds": monotonic() - self._started,
            "model": self.names.served[0],
            "max_model_len": self.max_model_len,
            "block_size": self._block_size,
            "now": monotonic(),
        }

    def _on_loading(self, loading: Loading) -> None:
        if loading.phase != self._loading.phase:
            self._phase_since = time()
        self._loading = loading
        self._last_progress = monotonic()

    def _core_state(self) -> CoreState | None:
        return None if self._model is None else self.client.state
