"""The operator as a process of this machine, before an API server that it reaches by a kubeconfig.

It is started, killed and started again under the same name, as a container is by its kubelet, so the next life has the
lease at once. It knows no faults and no scenarios.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

READY_WITHIN_S = 60.0
_STOPS_WITHIN_S = 30.0
# What the operator logs when code met what nobody had thought of.
_BROKEN = ("Traceback", "its loop broke", "a turn failed", "was never awaited", "was never retrieved")


@dataclass
class OperatorProcess:
    """`python -m capstan_operator run`, life after life. Every line that it logs is kept in one file."""

    kubeconfig: Path
    folder: Path
    configuration: dict[str, Any]
    process: "subprocess.Popen[bytes] | None" = None
    url: str = ""
    num_lives: int = 0
    _read: int = field(default=0, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "operator.log"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        """Begin a life and return once it knows its port; nothing is decided yet."""
        self.num_lives += 1
        config = self.folder / "operator.json"
        config.write_text(json.dumps(self.configuration))
        with self.log.open("ab") as output:
            began_at = output.tell()
            # Without a loop's help: a test that is cancelled right here must still know what it has to end.
            self.process = subprocess.Popen(  # noqa: ASYNC220
                (sys.executable, "-m", "capstan_operator", "run", "--config", str(config)),
                env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
                stdout=output,
                stderr=output,
            )
        async with asyncio.timeout(READY_WITHIN_S):
            while (port := self._port(began_at)) is None:
                if self.process.poll() is not None:
                    raise AssertionError(f"the operator ended at once: {self.log.read_text()[-2000:]}")
                await asyncio.sleep(0.05)
        self.url = f"http://127.0.0.1:{port}"

    def kill(self) -> None:
        """SIGKILL, without waiting: callable at any moment."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    async def ended(self) -> int:
        """The exit status of this life, once it is over."""
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, _STOPS_WITHIN_S)

    async def stop(self) -> None:
        """An orderly end, if it lives."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            await self.ended()

    async def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the health port."""
        timeout = aiohttp.ClientTimeout(total=10)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(f"{self.url}{path}") as answer:
            return answer.status, await answer.text()

    async def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        """All metrics, by name and labels."""
        _, text = await self.page("/metrics")
        families = text_string_to_metric_families(text)
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        found = await self.samples()
        return sum(value for (n, have), value in found.items() if n == name and labels.items() <= dict(have).items())

    def breakages(self) -> list[str]:
        """Lines of the log that show an exception which nothing expected; of the whole life, and those before it."""
        return [line[:600] for line in self.log.read_text().splitlines() if any(word in line for word in _BROKEN)]

    def usage(self) -> tuple[float, float]:
        """(processor seconds so far, resident MiB) of this life."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks = int(fields[11]) + int(fields[12])
        status = Path(f"/proc/{self.pid}/status").read_text()
        resident = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
        return ticks / os.sysconf("SC_CLK_TCK"), int(resident.split()[1]) / 1024

    def _port(self, began_at: int) -> int | None:
        with self.log.open("rb") as log:
            log.seek(began_at)
            for line in log.read().decode(errors="replace").splitlines():
                if "health and metrics on port" in line:
                    return int(json.loads(line)["message"].rsplit(" ", 1)[1])
        return None


@asynccontextmanager
async def operator(
    kubeconfig: Path, folder: Path, namespaces: list[str], **configuration: Any
) -> AsyncIterator[OperatorProcess]:
    """An operator for these namespaces (none: all of them), started and in the end stopped."""
    key = folder / "key"
    key.write_bytes(b"k" * 32)
    lease: Mapping[str, Any] = {"namespace": (namespaces or ["default"])[0], "identity": "campaign"}
    made = OperatorProcess(
        kubeconfig,
        folder,
        {
            "watchNamespaces": namespaces,
            "keyFile": str(key),
            "images": {"engine": "capstan.dev/capstan-engine:none", "operator": "capstan.dev/capstan:none"},
            "lease": dict(lease),
            "healthHost": "127.0.0.1",
            "healthPort": 0,
            **configuration,
        },
    )
    try:
        await made.start()
        yield made
    finally:
        await made.stop()


async def until(what: str, holds: Any, within_s: float) -> float:
    """Seconds until `await holds()` was true; fails with `what` when it takes longer than `within_s`."""
    began = time.monotonic()
    last: object = None
    while time.monotonic() - began < within_s:
        last = await holds()
        if last is True:
            return time.monotonic() - began
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: not within {within_s:g} s; last seen: {last}")
