"""The fetcher as a process: configuration in, a checkpoint on the disk, and a last line that says why not.

Exits with 0 when the checkpoint is there, 1 when it is not, 2 when the configuration is wrong and 143 on SIGTERM.
The last line of a failure begins with `infeasible:` or `source:`; in a pod it becomes the termination message.
"""

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from pydantic import ValidationError

from capstan_api.fetch_args import FetchArgs
from capstan_api.names import ENV_ADMIN_TOKEN
from capstan_fetch.admin import admin_port
from capstan_fetch.errors import FetchError
from capstan_fetch.fetch import fetch
from capstan_fetch.progress import Progress

logger = logging.getLogger(__name__)

_REPORT_EVERY_S: Final = 5.0
_TERMINATED: Final = 128 + signal.SIGTERM


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one fetch; returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    options = _parser().parse_args(argv)
    try:
        args = FetchArgs.model_validate_json(options.config.read_bytes())
    except OSError as error:
        return _fail(f"source: {options.config}: {error.strerror}", 2)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors(include_url=False))
        return _fail(f"source: {options.config}: {'; '.join(problems)}", 2)
    try:
        asyncio.run(_run(args, os.environ))
    except FetchError as error:
        return _fail(f"{error.prefix}: {error}", 1)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m capstan_fetch", description="Bring a checkpoint to this machine, whole and verified."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="FetchArgs as JSON")
    return parser


async def _run(args: FetchArgs, environment: Mapping[str, str]) -> None:
    # Also as process 1 of a container, which a signal without a handler does not reach.
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _leave)
    progress = Progress()
    token = environment.get(ENV_ADMIN_TOKEN) or None
    async with admin_port(progress.report, args.host, args.admin_port, token) as port:
        logger.info("fetching %s to %s; progress at /admin/startup on port %d", args.uri, args.destination, port)
        speaking = asyncio.ensure_future(_speak(progress))
        try:
            await fetch(args, environment, progress)
        finally:
            speaking.cancel()


def _leave() -> NoReturn:
    """At once: the next attempt finds what has come, as after any other end."""
    os._exit(_fail("source: stopped before the checkpoint was complete; what has come is kept", _TERMINATED))


async def _speak(progress: Progress) -> None:
    """A line of progress every few seconds, for whoever reads the log."""
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        logger.info("%s: %s", progress.phase.lower(), progress.sentence())


def _fail(line: str, code: int) -> int:
    print(line.replace("\n", " "), file=sys.stderr, flush=True)
    return code
