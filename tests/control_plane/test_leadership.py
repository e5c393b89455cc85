"""Two operator processes on a real API server: one acts, one takes over in time, a paused one never writes again."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cluster.embedded import EmbeddedCluster

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
TAKEOVER_WITHIN_S = 20.0


@dataclass
class OperatorProcess:
    """One `python -m capstan_operator run` outside of the cluster."""

    process: asyncio.subprocess.Process
    url: str

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            families = text_string_to_metric_families(await answer.text())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    async def leads(self) -> bool:
        return await self.metric("capstan_operator_is_leader") == 1

    async def num_writes(self) -> float:
        """Writes that were sent, those to the lease aside."""
        total = 0.0
        for verb in ("create", "update", "patch", "delete"):
            name = "capstan_operator_api_requests_total"
            total += await self.metric(name, verb=verb) - await self.metric(name, verb=verb, resource="leases")
        return total


@asynccontextmanager
async def operator(cluster: EmbeddedCluster, namespace: str, folder: Path, name: str) -> AsyncIterator[OperatorProcess]:
    key, config, log = folder / "key", folder / f"{name}.json", folder / f"{name}.log"
    key.write_bytes(b"k" * 32)
    config.write_text(
        json.dumps(
            {
                "watchNamespaces": [namespace],
                "keyFile": str(key),
                "images": {"engine": "capstan.dev/capstan-engine:none", "operator": "capstan.dev/capstan:none"},
                "lease": {"namespace": namespace, "identity": name},
                "healthHost": "127.0.0.1",
                "healthPort": 0,
            }
        )
    )
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "capstan_operator", "run", "--config", str(config)),
            env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
            stderr=output,
        )
    try:
        yield OperatorProcess(process, f"http://127.0.0.1:{await _port(log)}")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            await asyncio.wait_for(process.wait(), 20)


async def _at_rest(operator: OperatorProcess) -> float:
    """The number of writes, once it has stood still for a while."""
    seen, since = await operator.num_writes(), time.monotonic()
    async with asyncio.timeout(60):
        while time.monotonic() - since < 3:
            await asyncio.sleep(0.2)
            if (now := await operator.num_writes()) != seen:
                seen, since = now, time.monotonic()
    return seen


async def _port(log: Path) -> int:
    async with asyncio.timeout(60):
        while True:
            for line in (await asyncio.to_thread(log.read_text)).splitlines():
                if "health and metrics on port" in line:
                    return int(json.loads(line)["message"].rsplit(" ", 1)[1])
            await asyncio.sleep(0.1)


async def until(holds: Callable[[], Awaitable[bool]], within_s: float) -> float:
    """Seconds that it took to come true."""
    began = time.monotonic()
    async with asyncio.timeout(within_s):
        while not await holds():  # noqa: ASYNC110 - another process gives no event to wait for
            await asyncio.sleep(0.1)
    return time.monotonic() - began


async def test_a_standby_takes_over_within_20_s_and_the_paused_leader_never_writes_again(
    control_plane: EmbeddedCluster, tmp_path: Path
) -> None:
    control_plane.kubectl("apply", "-f", str(ROOT / "crds/inferencedeployments.yaml"))
    with control_plane.namespace() as namespace:

        def pods() -> list[str]:
            found: str = control_plane.kubectl(
                "-n", namespace, "get", "pods", "-l", "capstan.dev/revision", "-o", "name"
            )
            return found.split()

        async def settled() -> bool:
            return len(await asyncio.to_thread(pods)) == 2

        async with operator(control_plane, namespace, tmp_path, "first") as first:
            await until(first.leads, 30)
            async with operator(control_plane, namespace, tmp_path, "second") as second:
                assert not await second.leads()
                manifest = (ROOT / "crds/examples/quickstart.yaml").read_text()
                control_plane.kubectl("-n", namespace, "apply", "-f", "-", stdin=manifest)
                manual = {"spec": {"scaling": {"mode": "Manual", "replicas": 2, "maxReplicas": 2}}}
                control_plane.kubectl(
                    "-n", namespace, "patch", "infd", "quickstart", "--type=merge", "-p", json.dumps(manual)
                )
                await until(settled, 30)
                assert await second.num_writes() == 0
                before = await _at_rest(first)

                first.process.send_signal(signal.SIGSTOP)
                took_s = await until(second.leads, TAKEOVER_WITHIN_S)
                print(f"taken over after {took_s:.1f} s")
                # Work that only one of them may do: the second does it while the first sleeps and when it wakes.
                for wakes in (False, True):
                    if wakes:
                        first.process.send_signal(signal.SIGCONT)
                    name = pods()[0].removeprefix("pod/")
                    control_plane.kubectl("-n", namespace, "delete", "pod", name, "--wait=true")
                    await until(settled, 30)
                assert await second.num_writes() > 0
                assert not await first.leads()
                assert await first.num_writes() == before
                assert await second.leads()
            # An orderly end gives the lease back: nobody waits for it to run out.
            assert await until(first.leads, 10) < 10
