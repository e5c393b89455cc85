"""`capstan up` as a person starts it, seen from outside: its lines, its status file, its processes, its end.

Knows none of Capstan's code. Every process that a house starts inherits a mark in its environment, so that what is left
over is found wherever it went, orphans included; temporary files go to a directory of the house's own, for the same
reason.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

MARK = "CAPSTAN_TEST_HOUSE"
STARTED_S = 60.0
ENDED_S = 40.0
ORPHANS_GONE_S = 10.0
_POLL_S = 0.05


class Process(NamedTuple):
    """`role` is up, gateway, engine or core; `name` is the replica's for the last two."""

    pid: int
    role: str
    name: str


def document(name: str, *, scaling: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A small deployment of the shipped model; `spec` replaces whole parts of the specification."""
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": {"uri": "bundled://capstan-tiny"}, "maxModelLength": 512},
            "engine": {
                "batching": {"maxSequences": 8, "maxBatchedTokens": 128},
                "kvCache": {"memoryMebibytes": 64},
            },
            "slos": [
                {
                    "name": "interactive",
                    "priority": 10,
                    "ttft": {"thresholdMilliseconds": 5000},
                    "tpot": {"thresholdMilliseconds": 500},
                },
                {
                    "name": "batch",
                    "selector": {"modelAlias": f"{name}-batch"},
                    "ttft": {"thresholdMilliseconds": 60000},
                },
            ],
            "scaling": scaling,
            **spec,
        },
    }


class House:
    """One `capstan up`. `close` kills whatever is left, by process id."""

    def __init__(self, of: dict[str, Any]) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="house-"))
        self.scratch = self._home / "tmp"
        self.scratch.mkdir()
        self.run_dir = self._home / "run"
        self.file = self._home / "deployment.yaml"
        self.write(of)
        self.lines: list[str] = []
        self._mark = secrets.token_hex(8)
        environment = {**os.environ, MARK: self._mark, "TMPDIR": str(self.scratch)}
        command = [sys.executable, "-m", "capstan_cli", "up", str(self.file), "--port", "0", "--plain"]
        self.process = subprocess.Popen(
            [*command, "--run-dir", str(self.run_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            cwd=self._home,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def write(self, of: dict[str, Any] | str) -> None:
        """Put a resource, or any text, into the file that the house follows; readers never see half of it."""
        scratch = self.file.with_suffix(".new")
        scratch.write_text(of if isinstance(of, str) else yaml.safe_dump(of))
        scratch.replace(self.file)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    async def until(self, holds: Callable[[], Any], within_s: float = STARTED_S, what: str = "") -> Any:
        """What `holds` gives as soon as it is true. Fails with what the house has said so far."""
        deadline = time.monotonic() + within_s
        while not (found := holds()):
            if time.monotonic() > deadline:
                said = "\n".join(self.lines[-40:])
                raise AssertionError(f"not within {within_s:g} s: {what or holds}\n{said}\n{self.logs()}")
            await asyncio.sleep(_POLL_S)
        return found

    async def said(self, text: str, within_s: float = STARTED_S) -> str:
        """The first line that holds `text`."""
        found: str = await self.until(
            lambda: next((line for line in list(self.lines) if text in line), None), within_s, f"a line with {text!r}"
        )
        return found

    def status(self) -> dict[str, Any]:
        """The status of the resource; empty before the first one is written."""
        try:
            found: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        except FileNotFoundError:
            return {}
        return found

    def condition(self, kind: str) -> dict[str, str]:
        """A condition of the status by its type; empty when it is not there."""
        return next((c for c in self.status().get("conditions", []) if c["type"] == kind), {})

    async def ready(self, replicas: int, within_s: float = STARTED_S) -> str:
        """The endpoint, once exactly so many replicas exist, all of them ready."""

        def settled() -> bool:
            seen = self.status()
            counts = [seen.get(key, 0) for key in ("replicas", "readyReplicas", "desiredReplicas")]
            return counts == [replicas] * 3 and bool(seen.get("endpoint")) and not seen.get("drainingReplicas")

        await self.until(settled, within_s, f"{replicas} of {replicas} replicas ready")
        return self.endpoint

    @property
    def endpoint(self) -> str:
        """Where clients are served, without `/v1`."""
        address: str = self.status()["endpoint"]
        return address

    def logs(self) -> str:
        """The last lines of every log, for a failed test."""
        tails = [f"--- {log.name}\n" + log.read_text()[-1500:] for log in sorted(self.run_dir.rglob("*.log"))]
        return "\n".join(tails)

    def processes(self) -> list[Process]:
        """Everything alive that bears the mark, orphans included."""
        return sorted(_marked(self._mark), key=lambda process: process.pid)

    def pids(self, role: str) -> dict[str, int]:
        """Process ids by name."""
        return {process.name: process.pid for process in self.processes() if process.role == role}

    async def another(self, role: str, name: str, than: int) -> int:
        """The process id of whatever has taken the place of process `than`."""
        pid: int = await self.until(
            lambda: (found := self.pids(role).get(name)) != than and found, what=f"another {role} {name}"
        )
        return pid

    def kill(self, pid: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal one of the house's own processes."""
        assert pid in {process.pid for process in self.processes()}
        os.kill(pid, number)

    async def ended(self, within_s: float = ENDED_S) -> int:
        """The exit code, once `capstan up` has ended."""
        await self.until(lambda: self.process.poll() is not None, within_s, "the end of capstan up")
        self._reader.join()
        return self.process.returncode

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it as asked, and check that it ended well and left nothing."""
        self.process.send_signal(number)
        code = await self.ended()
        assert code == 0, "\n".join(self.lines[-40:])
        await self.has_left_nothing()

    async def has_left_nothing(self, within_s: float = ORPHANS_GONE_S) -> None:
        """No process, no listener, no temporary file."""
        endpoint = self.status().get("endpoint")
        await self.until(lambda: not self.processes(), within_s, "the end of every process")
        if endpoint:
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", int(endpoint.rpartition(":")[2]))) != 0
        assert not list(self.scratch.iterdir())

    def close(self) -> None:
        """Kill what still lives and remove the directory."""
        for process in self.processes():
            os.kill(process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self._home)


def _marked(mark: str) -> list[Process]:
    found = []
    engines: dict[int, str] = {}
    cores: list[tuple[int, int]] = []
    wanted = f"{MARK}={mark}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if wanted not in (directory / "environ").read_bytes().split(b"\0"):
                continue
            words = (directory / "cmdline").read_bytes().decode().split("\0")
            state, parent, *_ = (directory / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        pid = int(directory.name)
        if state == "Z":
            continue
        if "capstan_engine.core" in words:
            cores.append((pid, int(parent)))
        elif "capstan_engine" in words:
            engines[pid] = Path(words[words.index("--config") + 1]).stem
        elif "capstan_gateway" in words:
            found.append(Process(pid, "gateway", "gateway"))
        else:
            found.append(Process(pid, "up", "up"))
    found += [Process(pid, "engine", name) for pid, name in engines.items()]
    return found + [Process(pid, "core", engines.get(parent, "")) for pid, parent in cores]
