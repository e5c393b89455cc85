"""The gateway as a process: configuration in, one line on stdout when it listens, and an orderly end.

SIGTERM or SIGINT drains and then ends; a second one ends at once. With `--exit-with-parent` it ends when its standard
input closes: the parent is gone and nobody would ever send a signal.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import uvloop
from prometheus_client import disable_created_metrics
from pydantic import ValidationError

from capstan_api.engine_args import GatewayArgs
from capstan_api.names import ENV_ADMIN_TOKEN, ENV_API_KEY
from capstan_gateway.bodies import MAX_TOTAL_BYTES
from capstan_gateway.gateway import Gateway
from capstan_gateway.listener import CannotListen

logger = logging.getLogger(__name__)

_STDIN: Final = 0


def main(argv: Sequence[str] | None = None) -> None:
    """Exits with 0 after an orderly end, 1 when a port cannot be had and 2 when the configuration is wrong."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Its lines about every connection at shutdown say nothing that ours do not.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Creation times would be a second series beside every counter, and are in no catalogue.
    disable_created_metrics()
    args = _read_config(options.config)
    try:
        if args.cpus and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, args.cpus)
    except OSError:
        _refuse([f"cpus: {list(args.cpus)} are not all processors of this machine"], options.config)
    # Every stream holds two file descriptors, and the usual soft limit of 1024 is below what one gateway can pass on.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        gateway = Gateway(
            args,
            api_key=os.environ.get(ENV_API_KEY) or None,
            admin_token=os.environ.get(ENV_ADMIN_TOKEN) or None,
            max_body_bytes=options.max_body_mebibytes << 20,
        )
    except ValueError as error:
        _refuse([str(error)], options.config)
    try:
        uvloop.run(_serve(gateway, exit_with_parent=options.exit_with_parent))
    except CannotListen as error:
        print(f"capstan-gateway: {error}", file=sys.stderr)
        sys.exit(1)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m capstan_gateway",
        description="One OpenAI-compatible door for all replicas of an InferenceDeployment.",
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="GatewayArgs as JSON")
    parser.add_argument("--exit-with-parent", action="store_true", help="end when standard input closes")
    parser.add_argument(
        "--max-body-mebibytes",
        type=_positive,
        default=MAX_TOTAL_BYTES >> 20,
        metavar="N",
        help="what the bodies of all open requests may hold together: a quarter of the memory (default: %(default)s)",
    )
    return parser


def _read_config(path: Path) -> GatewayArgs:
    try:
        return GatewayArgs.model_validate_json(path.read_bytes())
    except OSError as error:
        _refuse([error.strerror or "cannot be read"], path)
    except ValidationError as error:
        _refuse(
            [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_url=False)], path
        )


def _refuse(problems: Sequence[str], path: Path) -> NoReturn:
    for problem in problems:
        print(f"capstan-gateway: {path}: {problem}", file=sys.stderr)
    sys.exit(2)


async def _serve(gateway: Gateway, *, exit_with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    asked, at_once = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        (at_once if asked.is_set() else asked).set()

    def stop_at_once() -> None:
        asked.set()
        at_once.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if exit_with_parent:
        threading.Thread(target=_wait_for_parent, args=(loop, stop_at_once), daemon=True).start()
    async with gateway:
        print(json.dumps({"event": "listening", "port": gateway.port, "admin_port": gateway.admin_port}), flush=True)
        logger.info("listening on port %d, admin on port %d", gateway.port, gateway.admin_port)
        await asked.wait()
        drained, told = asyncio.ensure_future(gateway.drained()), asyncio.ensure_future(at_once.wait())
        await asyncio.wait((drained, told), return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        told.cancel()
    logger.info("ended")


def _wait_for_parent(loop: asyncio.AbstractEventLoop, gone: Callable[[], None]) -> None:
    # Reads the descriptor itself: a daemon thread inside sys.stdin would hold its lock while the interpreter ends.
    while os.read(_STDIN, 4096):
        pass
    loop.call_soon_threadsafe(gone)
