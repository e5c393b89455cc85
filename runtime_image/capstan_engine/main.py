"""The front end process: arguments, ports, signals, and the order of beginning and end.

    python -m capstan_engine --config engine.json        as the operator starts it
    python -m capstan_engine --model DIR                 a usable server of its own

Standard output carries exactly one line, the ports as JSON, as soon as they are bound; the log goes to standard error
and never holds prompts or completions. Exit codes: 0 after an orderly end, 1 when the engine core died, 2 when the
arguments or the checkpoint are wrong, so that whoever restarts it can tell a crash from a mistake.

The surprising idea: the process owns its signals, not uvicorn. On SIGTERM the listeners stay open and answer 503 until
the last accepted request is finished; a second SIGTERM ends at once.
"""

import asyncio
import contextlib
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop
from pydantic import ValidationError

from capstan_api import names
from capstan_api.engine_args import EngineArgs
from capstan_engine.client import ProcessClient
from capstan_engine.errors import ConfigurationError, EngineDead, ModelError
from capstan_engine.messages import CoreState
from capstan_engine.server.admin import create_admin_app
from capstan_engine.server.app import create_app
from capstan_engine.server.arguments import engine_args, explained, parser
from capstan_engine.server.front_end import FrontEnd
from capstan_engine.server.listener import HttpServer, bound, port_of
from capstan_engine.server.step_log import StepLog

logger = logging.getLogger(__name__)

EXIT_DEAD: Final = 1
EXIT_WRONG: Final = 2
_TERMINATION_LOG: Final = "/dev/termination-log"
# Streams whose engine died need a moment to carry their error event out.
_LAST_WORDS_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = parser().parse_args(argv)
    try:
        args = engine_args(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(args, exit_with_parent=options.exit_with_parent))
    except ValidationError as error:
        _last_words(*explained(error))
        return EXIT_WRONG
    except (ModelError, ConfigurationError) as error:
        _last_words(str(error))
        return EXIT_WRONG
    except EngineDead as error:
        _last_words(str(error))
        return EXIT_DEAD


async def _serve(args: EngineArgs, *, exit_with_parent: bool) -> int:
    if args.cpus:
        _use_processors(args.cpus)
    _allow_many_connections()
    api = bound(args.host, args.port, "port")
    admin = bound(args.host, args.admin_port, "admin_port")
    step_log = None if args.step_log is None else _opened(args.step_log)
    client = ProcessClient(args)
    front = FrontEnd(args, client)
    servers = [
        HttpServer(create_app(front, api_key=os.environ.get(names.ENV_API_KEY)), api),
        HttpServer(create_admin_app(front, token=os.environ.get(names.ENV_ADMIN_TOKEN)), admin),
    ]
    stop = _Stop()
    stop.listen(exit_with_parent=exit_with_parent)
    async with contextlib.AsyncExitStack() as cleanup:
        if step_log is not None:
            client.on_update.append(step_log.on_update)
            cleanup.callback(asyncio.create_task(step_log.keep_flushed()).cancel)
        for server in servers:
            cleanup.push_async_callback(server.close)
            await server.open()
        cleanup.callback(front.limits.end_lease)
        # Leaves first: requests that are still open end with an error event while their connections still live.
        cleanup.push_async_callback(client.close)
        print(json.dumps({"event": "listening", "port": port_of(api), "admin_port": port_of(admin)}), flush=True)
        return await _live(args, front, stop)


async def _live(args: EngineArgs, front: FrontEnd, stop: "_Stop") -> int:
    """From loading to the end; returns the exit code."""
    loading = asyncio.create_task(front.load())
    stalled = asyncio.create_task(front.stalled())
    asked = asyncio.create_task(stop.asked.wait())
    await asyncio.wait((loading, stalled, asked), return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():
        loading.cancel()
        if asked.done():
            return 0
        raise stalled.result()
    stalled.cancel()
    await loading
    _announce(args, front)
    died = asyncio.create_task(front.watch())
    await asyncio.wait((died, asked), return_when=asyncio.FIRST_COMPLETED)
    if not died.done():
        front.lifecycle.drain(args.drain_timeout_seconds)
        # As when it is told to drain at the admin port.
        front.limits.end_lease()
        logger.info("draining: %d open requests", front.lifecycle.num_open)
        drained = asyncio.create_task(front.lifecycle.drained())
        at_once = asyncio.create_task(stop.at_once.wait())
        await asyncio.wait((drained, at_once, died), return_when=asyncio.FIRST_COMPLETED)
        for task in (drained, at_once):
            task.cancel()
    if died.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(front.lifecycle.idle(), _LAST_WORDS_S)
        raise died.result()
    died.cancel()
    logger.info("ending with %d open requests", front.lifecycle.num_open)
    return 0


class _Stop:
    """What asks this process to end: SIGTERM and SIGINT, twice for at once, or the end of standard input."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.at_once = asyncio.Event()

    def listen(self, *, exit_with_parent: bool) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        if exit_with_parent:
            threading.Thread(target=self._wait_for_parent, args=(loop,), daemon=True).start()

    def _signalled(self) -> None:
        (self.at_once if self.asked.is_set() else self.asked).set()

    def _wait_for_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        while os.read(0, 4096):
            pass
        # Nobody is left to wait for a drain.
        with contextlib.suppress(RuntimeError):  # the loop has already ended
            loop.call_soon_threadsafe(self._end_at_once)

    def _end_at_once(self) -> None:
        self.asked.set()
        self.at_once.set()


def _last_words(*lines: str) -> None:
    """Say why this process ends: in the log, and where the kubelet looks for a container's termination message."""
    for line in lines:
        print(f"capstan_engine: {line}", file=sys.stderr)
    # Elsewhere there is no such file, and it is not ours to make one.
    with contextlib.suppress(OSError), open(os.open(_TERMINATION_LOG, os.O_WRONLY | os.O_TRUNC), "w") as log:
        log.write("\n".join(lines))


def _announce(args: EngineArgs, front: FrontEnd) -> None:
    state: CoreState = front.client.state
    tokens = state.blocks_total * args.block_size
    full_length = min(tokens // args.max_model_len, args.envelope.max_sequences)
    logger.info(
        "ready after %.1f s: %s; envelope %d..%d sequences, %d..%d tokens a step; "
        "KV cache of %d tokens, enough for %d requests of %d tokens at once",
        front.startup_seconds["total"],
        ", ".join(front.names.all),
        args.envelope.min_sequences,
        args.envelope.max_sequences,
        args.envelope.min_batched_tokens,
        args.envelope.max_batched_tokens,
        tokens,
        full_length,
        args.max_model_len,
    )


def _opened(path: Path) -> StepLog:
    try:
        return StepLog(path)
    except OSError as error:
        raise ConfigurationError(f"step_log: cannot write {path}: {error.strerror}") from error


def _allow_many_connections() -> None:
    """Every stream holds a file descriptor, and the usual soft limit of 1024 is below what one engine can serve."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _use_processors(cpus: Sequence[int]) -> None:
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as error:
        available = sorted(os.sched_getaffinity(0))
        raise ConfigurationError(f"cpus: {list(cpus)} cannot be used here; available are {available}") from error
