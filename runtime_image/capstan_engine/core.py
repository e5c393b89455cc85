"""The engine core: a process, or in tests a thread, that runs the step loop behind one ZeroMQ socket.

    python -m capstan_engine.core ENDPOINT        EngineArgs as one line of JSON on standard input

Knows no HTTP and no text. The front end starts it and decides when it ends: it ignores SIGTERM and SIGINT, and ends on
`Shutdown` or when its standard input closes. Surprising idea: that pipe carries the configuration first and is then
held open as a sign of life, so a core outlives its parent by no more than a moment, however the parent dies. A core
that is stuck cannot read; on Linux the kernel is asked to end that one.
"""

import argparse
import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import zmq
from pydantic import ValidationError

from capstan_api.engine_args import EngineArgs
from capstan_api.limits import BatchLimits
from capstan_engine.build import build_engine
from capstan_engine.engine import Engine
from capstan_engine.errors import CapstanEngineError, ConfigurationError, QueueFull, RequestError, RequestTooLarge
from capstan_engine.messages import (
    Abort,
    Fatal,
    Loading,
    Refused,
    SetLimits,
    Shutdown,
    Submit,
    ToCore,
    ToFrontEnd,
    Update,
)
from capstan_engine.runner.machine import num_threads

HEARTBEAT_S: Final = 0.5
"""An idle core says something at least this often."""
_PR_SET_PDEATHSIG: Final = 1

_log = logging.getLogger(__name__)

Built = tuple[Engine, dict[str, float]]
"""An engine and the seconds of each start-up phase."""
Build = Callable[[EngineArgs, Callable[[Loading], None]], Built]
"""Makes the engine, and tells as it goes how far it has come."""


class Channel:
    """The core's end of the PAIR socket. Frames are MessagePack, one message each."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._socket = context.socket(zmq.PAIR)
        # Never block a step on a front end that is slow to read: what is in flight is bounded by the open requests.
        self._socket.set_hwm(0)
        self._socket.connect(endpoint)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)

    def send(self, message: ToFrontEnd) -> None:
        self._socket.send(self._encoder.encode(message))

    def receive(self, timeout_s: float) -> Iterator[ToCore]:
        """Everything that has arrived, after waiting at most `timeout_s` for the first."""
        ready = self._socket.poll(int(timeout_s * 1000))
        while ready:
            try:
                yield self._decoder.decode(self._socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return

    def close(self) -> None:
        """Close after the last frames are on their way; gives up on a front end that is gone."""
        self._socket.close(linger=1000)


def serve(channel: Channel, build: Callable[[], Built]) -> bool:
    """Build the engine and run its loop until `Shutdown`. Returns False when an error ended it, after saying which."""
    try:
        engine, startup_seconds = build()
        channel.send(engine.ready(startup_seconds))
        _loop(engine, channel)
    except CapstanEngineError as error:
        channel.send(Fatal(str(error), kind=type(error).__name__))
        return False
    except Exception as error:
        _log.exception("the engine core failed")
        channel.send(Fatal(f"{type(error).__name__}: {error}"))
        return False
    return True


def quiet_collector() -> None:
    """Keep Python's garbage collector out of the steps.

    What start-up made lives as long as the process, so it is never looked at again. A step makes and drops a few
    thousand objects; at the default threshold that alone starts collections, each of which walks the token lists of
    every request: over a millisecond at 256 requests of a thousand tokens. What really accumulates still starts them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def main(argv: list[str] | None = None, *, build: Build = build_engine) -> int:
    """The core process. Returns its exit code: 0 after `Shutdown`, 1 after an error, 2 when called wrongly."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parser = argparse.ArgumentParser(
        prog="capstan_engine.core", description="The engine core; started by the front end."
    )
    parser.add_argument("endpoint", help="ZeroMQ endpoint that the front end is bound to")
    endpoint: str = parser.parse_args(argv).endpoint
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s core %(levelname)s %(message)s")
    try:
        args = EngineArgs.model_validate_json(sys.stdin.buffer.readline())
    except ValidationError as error:
        print(f"capstan_engine.core: standard input must be EngineArgs as one line of JSON: {error}", file=sys.stderr)
        return 2
    _die_with_parent()
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def build_here() -> Built:
        _use_processors(args)
        built = build(args, channel.send)
        quiet_collector()
        return built

    context = zmq.Context()
    channel = Channel(context, endpoint)
    try:
        return 0 if serve(channel, build_here) else 1
    finally:
        channel.close()
        context.term()


def _loop(engine: Engine, channel: Channel) -> None:
    while True:
        for message in channel.receive(0 if engine.has_work else HEARTBEAT_S):
            match message:
                case Submit():
                    try:
                        displaced = engine.submit(message)
                    except RequestError as error:
                        channel.send(_refused(message.request_id, error))
                    else:
                        if displaced is not None:
                            channel.send(_refused(*displaced))
                case Abort():
                    engine.abort(message.request_ids)
                case SetLimits():
                    engine.set_limits(
                        BatchLimits(max_sequences=message.max_sequences, max_batched_tokens=message.max_batched_tokens)
                    )
                case Shutdown():
                    return
        channel.send(engine.step() if engine.has_work else Update(outputs=[], steps=[], state=engine.state()))


def _refused(request_id: str, error: RequestError) -> Refused:
    match error:
        case QueueFull():
            return Refused(request_id, "queue_full", str(error), error.retry_after_seconds)
        case RequestTooLarge():
            return Refused(request_id, "too_large", str(error), param=error.param)
        case _:
            return Refused(request_id, "invalid", str(error), param=error.param)


def _use_processors(args: EngineArgs) -> None:
    """Settle processors and thread counts. Must come before torch is imported: its thread pools read them once."""
    if args.cpus:
        available = os.sched_getaffinity(0)
        missing = sorted(set(args.cpus) - available)
        if missing:
            raise ConfigurationError(f"cpus: {missing} cannot be used here; available are {sorted(available)}")
        os.sched_setaffinity(0, args.cpus)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(num_threads(args.num_threads))


def _die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, whatever it is doing then (prctl(2))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    # Not sys.stdin: a daemon thread inside its lock would disturb an orderly exit.
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
