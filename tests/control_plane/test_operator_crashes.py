"""The operator is killed at its writes, one life after the other, while a resource is made, scaled, rolled and deleted.

Each life first has to put right what the one before it left, within 30 s of its start, and is then killed at the next
point. A watch of our own audits every moment in between: no replica more than wanted and surge allow, and never a
moment without a ready one once there was one. The deletion comes while the operator is dead, in the middle of a
scale-up: whatever it had begun must be collected, and nothing may be begun again.
"""

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from capstan_api import names
from cluster import campaign
from cluster.campaign import Direct, Site, is_full, is_ready, resource
from cluster.embedded import EmbeddedCluster
from cluster.fault_proxy import FaultProxy, Moment, Request, proxy
from cluster.gobuild import Progress
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = pytest.mark.e2e

CONVERGES_WITHIN_S = 30.0
SURGE = 1
# Steps of one cycle, with the number of writes that each takes at least.
STEPS = {"create": 12, "scale up": 5, "scale down": 5, "roll": 8, "delete": 3}
NUM_WORKERS = 2
# A cycle goes through all steps with one of these: the full form has every write of every step at each moment.
CYCLES = [(first, nth) for first in range(len(Moment)) for nth in range(14)]
random.Random(0).shuffle(CYCLES)
NUM_CYCLES = len(CYCLES) if is_full() else 5


@dataclass
class Audit:
    """What must hold at every moment, as the pods' events tell it."""

    at_most: int = 0
    at_least: int = 0
    pods: dict[str, bool] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    async def run(self, site: Site) -> None:
        async for event in site.api.watch(f"/api/v1/namespaces/{site.namespace}/pods"):
            pod = event["object"]
            metadata = pod["metadata"]
            if names.LABEL_REVISION not in metadata.get("labels", {}):
                continue
            if event["type"] == "DELETED" or "deletionTimestamp" in metadata:
                self.pods.pop(metadata["uid"], None)
            else:
                self.pods[metadata["uid"]] = is_ready(pod)
            if len(self.pods) > self.at_most:
                self.violations.append(f"{len(self.pods)} replicas, at most {self.at_most}: {metadata['name']}")
            if sum(self.pods.values()) < self.at_least:
                self.violations.append(f"{sum(self.pods.values())} ready, at least {self.at_least}")

    async def knows(self, site: Site, name: str) -> object:
        """True once the watch has told what a list tells: it may be behind, and the past must not be judged by new
        bounds.
        """
        listed = {pod["metadata"]["uid"]: is_ready(pod) for pod in await site.pods(name)}
        return True if listed == self.pods else f"watched {self.pods}, listed {listed}"


@dataclass
class Worker:
    """One operator with a namespace of its own, killed again and again."""

    number: int
    site: Site
    proxy: FaultProxy
    operator: OperatorProcess
    collects: asyncio.Future[None]
    """Done once the cluster collects what belongs to deleted resources."""
    audit: Audit = field(default_factory=Audit)
    killed: Counter[tuple[str, Moment]] = field(default_factory=Counter)
    late: int = 0
    took_s: list[tuple[float, str]] = field(default_factory=list)
    """How long each next life took, and after what."""
    name: str = ""
    replicas: int = 0

    async def cycle(self, first: int, nth: int) -> None:
        """All steps in turn, killed at moments that differ, the first of them at the one with this number."""
        moments = itertools.islice(itertools.cycle(Moment), first, None)
        for step, moment in zip(STEPS, moments, strict=False):
            await self._step(step, moment, 1 + nth % STEPS[step])

    async def _step(self, step: str, moment: Moment, nth: int) -> None:
        """Have the operator killed in this step, and see the next life complete it."""
        killed = self._arm(moment, nth)
        match step:
            case "create":
                self.name, self.replicas = f"llama-{time.monotonic_ns() % 1_000_000}", 1
                self.audit.at_most, self.audit.at_least = 1 + SURGE, 0
                await self.site.declare(resource(self.name))
            case "scale up" | "delete":
                self.audit.at_most = 3 + SURGE
                await self._scale(3)
            case "scale down":
                await self._scale(1)
            case "roll":
                await self.site.edit(self.name, {"engine": {"maxQueuedRequests": 100}})
        try:
            await asyncio.wait_for(killed.wait(), 10)
            self.killed[step, moment] += 1
        except TimeoutError:
            # It had fewer writes to make than expected: then it dies at rest.
            self.late += 1
            self.operator.kill()
        self.proxy.on_write = lambda _, __: False
        await self.operator.ended()
        if step == "delete":
            self.audit.at_least = 0
            await self.collects
            await self.site.delete(self.name)
        await self.operator.start()
        began = time.monotonic()
        what = f"{step}, killed {moment} at write {nth}"
        if step == "delete":
            await until(what, self.site.is_empty, CONVERGES_WITHIN_S)
        else:
            await until(what, lambda: self.site.is_converged(self.name, self.replicas), CONVERGES_WITHIN_S)
        self.took_s.append((time.monotonic() - began, what))
        await until("the audit is up to date", lambda: self.audit.knows(self.site, self.name), CONVERGES_WITHIN_S)
        if step != "delete":
            self.audit.at_most = max(1, self.replicas) + SURGE
            self.audit.at_least = 1

    async def _scale(self, replicas: int) -> None:
        self.replicas = replicas
        await self.site.edit(self.name, {"scaling": {"replicas": replicas}})

    def _arm(self, moment: Moment, nth: int) -> asyncio.Event:
        """Kill at the n-th write from now on."""
        done, writes = asyncio.Event(), itertools.count(1)

        def on_write(at: Moment, _: Request) -> bool:
            if done.is_set():
                # What was still on its way from a dead one does not arrive.
                return at is Moment.BEFORE
            if at is not moment or next(writes) < nth:
                return False
            self.operator.kill()
            done.set()
            return at is not Moment.ANSWERED

        self.proxy.on_write = on_write
        return done


async def test_killed_at_any_write_the_next_life_converges_within_30_s(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    began, cycles = time.monotonic(), iter(CYCLES[:NUM_CYCLES])
    async with campaign.direct(control_plane.kubeconfig) as api, asyncio.TaskGroup() as tasks:
        collects = tasks.create_task(campaign.until_collected(control_plane, api))
        running = [
            tasks.create_task(_worker(control_plane, api, tmp_path, number, cycles, collects))
            for number in range(NUM_WORKERS)
        ]
    workers = [task.result() for task in running]
    killed = sum((w.killed for w in workers), Counter[tuple[str, Moment]]())
    took_s = sorted(each for w in workers for each in w.took_s)
    progress(
        f"crashes: {killed.total()} kill points at writes and {sum(w.late for w in workers)} at rest in "
        f"{time.monotonic() - began:.0f} s; every next life converged, after {took_s[len(took_s) // 2][0]:.1f} s "
        f"in the median and {took_s[-1][0]:.1f} s at most ({took_s[-1][1]})"
    )
    assert {step for step, _ in killed} == set(STEPS)
    assert {moment for _, moment in killed} == set(Moment)
    assert killed.total() >= (200 if is_full() else 20)


async def _worker(
    plane: EmbeddedCluster,
    api: Direct,
    folder: Path,
    number: int,
    cycles: Iterator[tuple[int, int]],
    collects: asyncio.Future[None],
) -> Worker:
    namespace, own = f"crashes-{number}", folder / str(number)
    own.mkdir()
    async with (
        campaign.site(plane, api, namespace) as site,
        proxy(plane.kubeconfig, own) as (broken, kubeconfig),
        operator(kubeconfig, own, [namespace]) as process,
    ):
        worker = Worker(number, site, broken, process, collects)
        auditing = asyncio.create_task(worker.audit.run(site))
        for cycle in cycles:
            await worker.cycle(*cycle)
            assert not worker.audit.violations, cycle
            assert not process.breakages()
            assert not auditing.done()
        auditing.cancel()
        return worker
