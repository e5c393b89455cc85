"""A client over one PAIR socket: hands out what the core says, and fails everything open when the core is gone.

Does not know whether the core is a process or a thread. A stream that nobody reads delays no other: each has its own
queue, bounded by its request's max_tokens.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Final

import msgspec
import zmq
import zmq.asyncio

from capstan_api.limits import BatchLimits
from capstan_engine.errors import (
    CapstanEngineError,
    ConfigurationError,
    EngineDead,
    Infeasible,
    ModelError,
    QueueFull,
    RequestError,
    RequestTooLarge,
    UnsupportedModel,
)
from capstan_engine.messages import (
    Abort,
    CoreState,
    Fatal,
    Loading,
    Output,
    Ready,
    Refused,
    SetLimits,
    Shutdown,
    Submit,
    ToCore,
    ToFrontEnd,
    Update,
)

LAST_WORDS_S: Final = 0.25
"""How long the frames of a core that has ended may still be on their way."""
SHUTDOWN_TIMEOUT_S: Final = 5.0
"""A core that has not ended this long after `Shutdown` is killed: it may be in a long step."""

_log = logging.getLogger(__name__)

_START_UP_ERRORS: Final = {e.__name__: e for e in (ModelError, UnsupportedModel, ConfigurationError, Infeasible)}
_BEFORE_START: Final = CoreState(
    time=0.0,
    heartbeat=0,
    steps=0,
    running=0,
    waiting=0,
    prefill_backlog=0,
    blocks_total=0,
    blocks_held=0,
    blocks_cached=0,
    prefix_queries=0,
    prefix_hits=0,
    preemptions=0,
    busy_seconds=0.0,
    max_sequences=0,
    max_batched_tokens=0,
)


class CoreClient(ABC):
    """An `EngineClient` over one PAIR socket. Subclasses start the core and wait for its end."""

    def __init__(self) -> None:
        self.on_update: list[Callable[[Update], None]] = []
        self.on_loading: list[Callable[[Loading], None]] = []
        self.state = _BEFORE_START
        self._context = zmq.asyncio.Context()
        self._socket: zmq.asyncio.Socket | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToFrontEnd] = msgspec.msgpack.Decoder(ToFrontEnd)
        self._streams: dict[str, asyncio.Queue[Output | CapstanEngineError]] = {}
        self._ready: asyncio.Future[Ready] | None = None
        self._dead: EngineDead | None = None
        self._death = asyncio.Event()
        self._last_frame_time = time.monotonic()
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def last_heartbeat_age_s(self) -> float:
        """Seconds since the core last said something."""
        return time.monotonic() - self._last_frame_time

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    async def start(self) -> Ready:
        """Start the core and wait until it takes requests.

        Raises ModelError or ConfigurationError when the core says so, EngineDead when it ends otherwise.
        """
        assert self._socket is None, "a client is started once"
        self._ready = asyncio.get_running_loop().create_future()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.bind(self._endpoint)
        await self._launch()
        self._reader = asyncio.create_task(self._read(self._socket))
        self._watcher = asyncio.create_task(self._watch(self._reader))
        return await self._ready

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        """Outputs of one request; the last one has a finish reason. Closing the generator earlier aborts the request.

        Leaving early means `aclose` (`contextlib.aclosing`): mere garbage collection may come late. Raises
        RequestTooLarge, QueueFull or RequestError before the first output, EngineDead whenever the core is gone.
        Ids must never be used twice: outputs of an aborted request may still be on their way.
        """
        if self._dead is not None:
            raise self._dead
        if submit.request_id in self._streams:
            raise RequestError(f"request id {submit.request_id!r} is already in use", param="request_id")
        stream: asyncio.Queue[Output | CapstanEngineError] = asyncio.Queue()
        self._streams[submit.request_id] = stream
        try:
            self._send(submit)
            while True:
                item = await stream.get()
                if isinstance(item, CapstanEngineError):
                    raise item
                if item.finish_reason is not None:
                    self._streams.pop(submit.request_id, None)
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            # Still in the table: nothing has ended it, so the one who listened has gone.
            if self._streams.pop(submit.request_id, None) is not None and self._dead is None:
                self._send(Abort([submit.request_id]))

    def set_limits(self, limits: BatchLimits) -> None:
        """Apply limits at the next step boundary. The caller has checked them against the envelope."""
        self._send(SetLimits(max_sequences=limits.max_sequences, max_batched_tokens=limits.max_batched_tokens))

    async def died(self) -> EngineDead:
        """Wait until the core is gone, by itself or closed; returns why."""
        await self._death.wait()
        assert self._dead is not None
        return self._dead

    async def close(self) -> None:
        """End the core. Requests that are still open fail with EngineDead. Closing twice does nothing."""
        if self._socket is None or self._socket.closed:
            return
        if self._reader is not None and self._watcher is not None:
            self._reader.cancel()
            if self._ready is not None and not self._ready.done():
                self._kill()
            else:
                self._post(Shutdown())
            self._die("the engine was shut down")
            _, late = await asyncio.wait({self._watcher}, timeout=SHUTDOWN_TIMEOUT_S)
            if late:
                self._kill()
            await self._watcher
        self._socket.close(linger=0)
        self._context.term()

    @property
    @abstractmethod
    def _endpoint(self) -> str: ...

    @abstractmethod
    async def _launch(self) -> None:
        """Start the core; its socket will connect to `_endpoint`."""

    @abstractmethod
    async def _ended(self) -> str:
        """Wait for the core's end; returns how it ended, in words."""

    @abstractmethod
    def _kill(self) -> None:
        """End a core that does not end by itself."""

    def _send(self, message: ToCore) -> None:
        if self._dead is not None:
            raise self._dead
        self._post(message)

    def _post(self, message: ToCore) -> None:
        assert self._socket is not None, "start the client first"
        # Never waits: without a high-water mark the socket takes everything at once.
        sent = asyncio.ensure_future(self._socket.send(self._encoder.encode(message), zmq.NOBLOCK))
        # It refuses only when the other end has gone, and then the watcher is about to say so to everyone.
        sent.exception()

    async def _read(self, socket: zmq.asyncio.Socket) -> None:
        """Hand out what the core says, until its last words."""
        try:
            while self._dead is None:
                frame = await socket.recv()
                self._last_frame_time = time.monotonic()
                self._take(self._decoder.decode(frame))
        except Exception as error:
            # An observer's mistake, or a frame that is none: streams would otherwise wait for ever.
            _log.exception("the engine core's messages cannot be handled")
            self._die(f"a message of the engine core could not be handled: {error}")

    def _take(self, message: ToFrontEnd) -> None:
        match message:
            case Update():
                self._take_update(message)
            case Refused():
                self._fail(message.request_id, _refusal(message))
            case Loading():
                for take in self.on_loading:
                    take(message)
            case Ready():
                self.state = message.state
                self._become_ready(message)
            case Fatal():
                self._die(message.message, _START_UP_ERRORS.get(message.kind, EngineDead))

    def _take_update(self, update: Update) -> None:
        self.state = update.state
        for observe in self.on_update:
            observe(update)
        for output in update.outputs:
            stream = self._streams.get(output.request_id)
            if stream is not None:
                stream.put_nowait(output)

    def _fail(self, request_id: str, error: CapstanEngineError) -> None:
        stream = self._streams.pop(request_id, None)
        if stream is not None:
            stream.put_nowait(error)

    def _become_ready(self, ready: Ready) -> None:
        assert self._ready is not None
        if not self._ready.done():
            self._ready.set_result(ready)

    async def _watch(self, reader: asyncio.Task[None]) -> None:
        how = await self._ended()
        # A Fatal that says why ends the reader; a core that was killed says nothing.
        await asyncio.wait({reader}, timeout=LAST_WORDS_S)
        reader.cancel()
        self._die(f"the engine core {how}")

    def _die(self, message: str, start_up_error: type[CapstanEngineError] = EngineDead) -> None:
        """Fail everything that is open, now and later. The first reason counts."""
        if self._dead is not None:
            return
        self._dead = EngineDead(message)
        self._death.set()
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(start_up_error(message))
        for request_id in list(self._streams):
            self._fail(request_id, EngineDead(message))


def _refusal(refused: Refused) -> RequestError:
    match refused.reason:
        case "queue_full":
            return QueueFull(refused.message, retry_after_seconds=refused.retry_after_seconds or 1.0)
        case "too_large":
            return RequestTooLarge(refused.message, param=refused.param)
        case _:
            return RequestError(refused.message, param=refused.param)
