"""A checkpoint from a hub or a bucket to this machine, by the same fetcher that runs before an engine in a cluster."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from capstan_api.fetch_args import FetchArgs, SourceEndpoint
from capstan_cli.errors import CliError, InputError
from capstan_fetch.errors import FetchError
from capstan_fetch.fetch import fetch
from capstan_fetch.manifest import Manifest
from capstan_fetch.progress import Progress

_REPORT_EVERY_S: Final = 2.0


def checkpoint(uri: str, directory: Path, *, revision: str | None, digest: str | None, endpoint: str | None) -> str:
    """Have the checkpoint in `directory`; returns what names it in a resource. Raises `CliError`."""
    try:
        args = FetchArgs(
            uri=uri,
            revision=revision,
            digest=digest,
            destination=directory.absolute(),
            endpoint=SourceEndpoint(url=endpoint, allow_private=True) if endpoint else None,
        )
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, e['loc'])) or 'fetch'}: {e['msg']}" for e in error.errors(include_url=False))
        raise InputError("; ".join(problems)) from None
    try:
        manifest = asyncio.run(_fetch(args))
    except FetchError as error:
        raise CliError(str(error)) from None
    except KeyboardInterrupt:
        raise CliError("stopped; what has come is kept, and the same command goes on from there") from None
    return f"uri: file://{args.destination}\n# {manifest.digest}"


async def _fetch(args: FetchArgs) -> Manifest:
    progress = Progress()
    telling = asyncio.ensure_future(_tell(progress))
    try:
        return await fetch(args, os.environ, progress)
    finally:
        telling.cancel()


async def _tell(progress: Progress) -> None:
    while True:
        await asyncio.sleep(_REPORT_EVERY_S)
        print(f"{progress.phase}: {progress.sentence()}", file=sys.stderr, flush=True)
