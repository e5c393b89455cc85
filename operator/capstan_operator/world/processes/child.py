"""One supervised child process: started, probed, restarted with back-off, drained, ended.

Does for a process what a kubelet does for a container, and knows as little of what is inside: one line on standard
output that names its ports, `/readyz`, `/health`, SIGTERM.

The surprising idea: the child's standard input is a pipe that only we hold. However we end, SIGKILL included, the
kernel closes it, the child reads the end of file and ends itself; nothing is ever left running.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.decide.verdicts import verdict_in
from capstan_operator.errors import AdminError
from capstan_operator.settings import OperatorSettings

_LONGEST_LINE = 64 << 10
_LAST_WORDS = 300


@dataclass(frozen=True)
class Launch:
    """How to start it. `config` is written to `config_path` before every start."""

    command: tuple[str, ...]
    config_path: Path
    config: str
    log_path: Path
    environment: dict[str, str]

    def write(self) -> None:
        """Put the configuration where the process looks for it. Raises OSError."""
        self.config_path.write_text(self.config)


class Child:
    """One process under supervision, from construction until `gone`."""

    def __init__(
        self, name: str, launch: Launch, http: BoundedHttp, settings: OperatorSettings, on_change: Callable[[], None]
    ) -> None:
        self.name = name
        self.phase = Phase.STARTING
        self.created_at = time.time()
        self.ready_at: float | None = None
        self.restarts = 0
        self.url: str | None = None
        self.admin_url: str | None = None
        self.message = ""
        self.gone = asyncio.Event()
        self._launch = launch
        self._http = http
        self._settings = settings
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._killed = False
        self._leave_by: float | None = None
        self._leaving = asyncio.Event()
        # Ends the wait before a restart: something has changed that should not wait for it.
        self._nudge = asyncio.Event()
        self._ender: asyncio.Task[None] | None = None
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervise {name}")

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start_with(self, launch: Launch) -> None:
        """Start it in another way from the next time on; a wait before a restart ends. Raises OSError.

        The process that runs is left alone, but finds its new configuration where it read the old one.
        """
        self._launch = launch
        launch.write()
        if self.phase is Phase.FAILED:
            self._nudge.set()

    def leave(self, timeout_s: float) -> None:
        """Ask it to finish what it accepted, and end it after `timeout_s` whether it has or not. Returns at once."""
        deadline = time.monotonic() + timeout_s + self._settings.kill_after_s
        if self._leave_by is not None:
            # Asked a second time: an earlier end counts, a second SIGTERM means at once.
            if deadline < self._leave_by:
                self._leave_by = deadline
                self._signal(signal.SIGTERM)
            return
        self._leave_by = deadline
        self.phase = Phase.DRAINING
        self._leaving.set()
        self._nudge.set()
        self._on_change()
        self._signal(signal.SIGTERM)
        self._ender = asyncio.create_task(self._kill_in_time(), name=f"end {self.name}")

    def kill(self) -> None:
        """End it and everything that it started, now."""
        self._killed = True
        self._leaving.set()
        self._nudge.set()
        self._kill_group()

    async def _supervise(self) -> None:
        failures = 0
        try:
            while not self._leaving.is_set():
                began = time.monotonic()
                ending = await self._live_once()
                if self._leaving.is_set():
                    break
                failures = 0 if time.monotonic() - began >= self._settings.stable_s else failures
                self.phase, self.ready_at, self.message = Phase.FAILED, None, ending
                self.url = self.admin_url = None
                self._on_change()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._nudge.wait(), back_off_s(failures, self._settings))
                failures += 1
                if not self._leaving.is_set():
                    self.restarts += 1
        finally:
            self.gone.set()
            self._on_change()

    async def _live_once(self) -> str:
        """One life of the process; returns how it ended, for people."""
        launch = self._launch
        self._nudge.clear()
        self.phase, self.url, self.admin_url, self.ready_at = Phase.STARTING, None, None, None
        try:
            launch.write()
            with launch.log_path.open("ab") as log:
                log_start = log.tell()
                self._process = await asyncio.create_subprocess_exec(
                    *launch.command,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=log,
                    env=launch.environment,
                    start_new_session=True,
                    limit=_LONGEST_LINE,
                )
        except OSError as error:
            return f"could not be started: {error}"
        # What was asked for while the process was being made has not reached it yet.
        if self._killed:
            self._kill_group()
        elif self._leaving.is_set():
            self._signal(signal.SIGTERM)
        watch = asyncio.create_task(self._watch(self._process), name=f"watch {self.name}")
        try:
            code = await self._process.wait()
        finally:
            watch.cancel()
            # The front end may have left a part of itself behind; its group may not outlive it.
            self._kill_group()
            with suppress(asyncio.CancelledError):
                await watch
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        last = _last_line(launch.log_path, log_start)
        return verdict_in(last) or (f"{how}: {last}" if last else how)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Learn the ports, then probe until the process ends."""
        assert process.stdout is not None
        while (line := await _line(process.stdout)) is not None:
            ports = _ports(line)
            if ports is not None:
                self.url, self.admin_url = (f"http://127.0.0.1:{port}" for port in ports)
                break
        else:
            return
        reader = asyncio.create_task(_discard(process.stdout), name=f"read {self.name}")
        try:
            await self._probe(self.url or "")
        finally:
            reader.cancel()

    async def _probe(self, url: str) -> None:
        """Follow readiness, and kill what has not shown life for too long: the supervisor starts it again."""
        alive_at, was_ready = time.monotonic(), False
        while not self._leaving.is_set():
            # A loading engine lives but is not healthy yet; a stuck one answers and is not healthy any more.
            ready, alive = await asyncio.gather(
                self._answers(f"{url}/readyz"), self._answers(f"{url}/health" if was_ready else f"{url}/livez")
            )
            if self._leaving.is_set():
                return
            phase = Phase.READY if ready and alive else Phase.STARTING
            if phase is not self.phase:
                self.phase, self.ready_at = phase, time.time() if phase is Phase.READY else None
                was_ready = was_ready or phase is Phase.READY
                self._on_change()
            if alive:
                alive_at = time.monotonic()
            elif time.monotonic() - alive_at > self._settings.liveness_timeout_s:
                self._kill_group()
            settings = self._settings
            await asyncio.sleep(settings.ready_probe_interval_s if phase is Phase.READY else settings.probe_interval_s)

    async def _answers(self, url: str) -> bool:
        try:
            return (await self._http.request("GET", url)).status == 200
        except AdminError:
            return False

    async def _kill_in_time(self) -> None:
        while not self.gone.is_set():
            left_s = (self._leave_by or 0) - time.monotonic()
            if left_s <= 0:
                self._kill_group()
                await self.gone.wait()
            with suppress(TimeoutError):
                # In slices, because a second request may bring the end forward.
                await asyncio.wait_for(self.gone.wait(), min(max(left_s, 0.01), 0.5))

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.send_signal(number)

    def _kill_group(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)


def back_off_s(failures: int, settings: OperatorSettings) -> float:
    """The wait before a restart, after so many failures in a row before this one."""
    return min(settings.first_restart_s * 2.0 ** min(failures, 16), settings.longest_restart_s)


def _ports(line: bytes) -> tuple[int, int] | None:
    """The two ports in the line that says that a process listens; None for any other line."""
    try:
        said = json.loads(line)
        return (int(said["port"]), int(said["admin_port"])) if said["event"] == "listening" else None
    except (ValueError, KeyError, TypeError):
        return None


async def _line(stream: asyncio.StreamReader) -> bytes | None:
    """The next line, None at the end of the stream; a line that is too long counts as the end."""
    try:
        return await stream.readline() or None
    except ValueError:
        return None


async def _discard(stream: asyncio.StreamReader) -> None:
    """Keep the pipe empty, so that a process which goes on talking is never stopped by it."""
    while await stream.read(_LONGEST_LINE):
        pass


def _last_line(path: Path, start: int) -> str:
    """The last line that a process wrote to its log in the life that began at `start`."""
    with suppress(OSError), path.open("rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - 4096))
        lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:_LAST_WORDS] if lines else ""
    return ""
