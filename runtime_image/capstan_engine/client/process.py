"""The core as a child process: what a server uses."""

import asyncio
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from capstan_api.engine_args import EngineArgs
from capstan_engine import core
from capstan_engine.client.connection import CoreClient
from capstan_engine.messages import Ready

_STDERR: Final = 2


class ProcessClient(CoreClient):
    """Runs the core as a child process, which ends with this one however it ends."""

    def __init__(self, args: EngineArgs, *, command: Sequence[str] = (sys.executable, "-m", core.__name__)) -> None:
        super().__init__()
        self._args = args
        self._command = command
        self._directory = Path()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the core, once it runs."""
        return None if self._process is None else self._process.pid

    async def start(self) -> Ready:
        self._directory = Path(tempfile.mkdtemp(prefix="capstan-"))
        try:
            return await super().start()
        finally:
            # Both ends are connected by now, so nothing is left behind even if this process is killed later.
            shutil.rmtree(self._directory)

    @property
    def _endpoint(self) -> str:
        return f"ipc://{self._directory / 'core'}"

    async def _launch(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            self._endpoint,
            stdin=asyncio.subprocess.PIPE,
            # Ours is the supervisor's pipe: held open by a core, it would hide from the supervisor that we have ended.
            stdout=_STDERR,
            # The front end decides when the core ends: a Ctrl-C at the terminal must not reach it first.
            start_new_session=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(self._args.model_dump_json().encode() + b"\n")

    async def _ended(self) -> str:
        assert self._process is not None
        code = await self._process.wait()
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
