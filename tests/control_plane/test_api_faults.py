"""The API server, or the way to it, goes wrong in every way that we know: the operator waits, and then catches up.

While a fault holds, one resource is made, one scaled and one deleted, so that every verb has work to do. The test plays
the kubelet where it has to: it asks the liveness probe, and starts the operator again when that fails.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster import campaign
from cluster.campaign import Site, is_full, resource
from cluster.embedded import EmbeddedCluster
from cluster.fault_proxy import VERBS, Fault, FaultProxy, How, proxy
from cluster.gobuild import Progress
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONVERGES_WITHIN_S = 60.0
HELD_S = 10.0 if is_full() else 2.0
OUTAGE_S = 600.0 if is_full() else 30.0
# The silence between two bookmarks, a minute, must be allowed.
BLIND_S = 180.0 if is_full() else 75.0
# What a patient operator may ask of a server that refuses everything, for its three resources.
MOST_REFUSED_PER_S = 30.0
NUM_WORKERS = 2
QUICK = {"resyncSeconds": 3, "api": {"requestTimeoutSeconds": 4}}

WAYS = (
    *(Fault(How.STATUS, code) for code in (500, 503, 409, 410, 403)),
    Fault(How.STATUS, 429, retry_after_s=1),
    Fault(How.HANG),
    Fault(How.DROP),
    Fault(How.SLOW),
)
IN_STREAM = tuple(Fault(How.IN_STREAM, code, verbs=("watch",)) for code in (410, 500))


def cells() -> list[Fault]:
    """Every way with every verb and with all of them; in the short form each with all, and each verb once."""
    verbs = sorted(VERBS)
    single = [(way, verb) for way in WAYS for verb in verbs]
    if not is_full():
        single = [(WAYS[n % len(WAYS)], verb) for n, verb in enumerate(verbs)]
    return [
        *WAYS,
        *IN_STREAM,
        *(Fault(way.how, way.code, way.retry_after_s, verbs=(verb,)) for way, verb in single),
    ]


@dataclass
class Scene:
    """An operator behind a proxy, and what it looks after."""

    site: Site
    proxy: FaultProxy
    operator: OperatorProcess
    wanted: dict[str, int] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    async def change(self) -> None:
        """Make one resource, scale the one before and delete the one before that."""
        match list(self.wanted):
            case [*_, third, second]:
                await self.site.edit(second, {"scaling": {"replicas": 2}})
                self.wanted[second] = 2
                await self.site.delete(third)
                del self.wanted[third]
        name = f"llama-{next(self.numbers)}"
        await self.site.declare(resource(name))
        self.wanted[name] = 1

    async def is_converged(self) -> object:
        for name, replicas in self.wanted.items():
            if (so := await self.site.is_converged(name, replicas)) is not True:
                return f"{name}: {so}"
        orphans = {
            item["metadata"]["name"]
            for found in (await self.site.children()).values()
            for item in found
            if not any(item["metadata"]["name"].startswith(name) for name in self.wanted)
        }
        return True if not orphans else f"orphans {orphans}"

    async def settle(self, what: str) -> float:
        return await until(what, self.is_converged, CONVERGES_WITHIN_S)

    async def suffer(self, fault: Fault) -> tuple[float, float]:
        """(seconds to converge after it, refusals per second while it held)."""
        began, before = time.monotonic(), len(self.proxy.passages)
        self.proxy.set(fault)
        await self.change()
        await asyncio.sleep(HELD_S)
        await self.must_live()
        refused = sum(1 for p in self.proxy.passages[before:] if p.code in (0, fault.code))
        rate = refused / (time.monotonic() - began)
        self.proxy.set(None)
        took_s = await self.settle(str(fault))
        await self.must_live()
        assert not self.operator.breakages(), fault
        return took_s, rate

    async def must_live(self) -> None:
        assert await self.operator.page("/livez") == (200, "ok")


@asynccontextmanager
async def scene(plane: EmbeddedCluster, folder: Path, namespace: str, **configuration: Any) -> AsyncIterator[Scene]:
    own = folder / namespace
    own.mkdir()
    async with (
        campaign.direct(plane.kubeconfig) as api,
        campaign.site(plane, api, namespace) as site,
        proxy(plane.kubeconfig, own) as (broken, kubeconfig),
        operator(kubeconfig, own, [namespace], **{**QUICK, **configuration}) as process,
    ):
        made = Scene(site, broken, process)
        await made.change()
        await made.change()
        await made.settle("at the beginning")
        yield made


async def test_it_catches_up_within_60_s_of_any_fault(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    began, faults, results = time.monotonic(), iter(cells()), dict[Fault, tuple[float, float]]()

    async def work(number: int) -> None:
        async with scene(control_plane, tmp_path, f"faults-{number}") as made:
            for fault in faults:
                results[fault] = await made.suffer(fault)

    async with asyncio.TaskGroup() as tasks:
        for number in range(NUM_WORKERS):
            tasks.create_task(work(number))
    slowest = max(results, key=lambda fault: results[fault][0])
    busiest = max(results, key=lambda fault: results[fault][1])
    progress(
        f"api faults: {len(results)} faults of {HELD_S:g} s in {time.monotonic() - began:.0f} s; caught up after "
        f"{results[slowest][0]:.1f} s at most ({slowest}), refused {results[busiest][1]:.1f} times a second at most "
        f"({busiest})"
    )
    assert results[busiest][1] <= MOST_REFUSED_PER_S


async def test_an_outage_of_the_api_server_touches_no_pod(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    async with scene(control_plane, tmp_path, "outage", maxBlindSeconds=BLIND_S) as made:
        before = await _pods(made.site)
        made.proxy.set(Fault(How.DROP))
        num_restarts, until_s = 0, time.monotonic() + OUTAGE_S
        while time.monotonic() < until_s:
            await asyncio.sleep(1)
            if (await made.operator.page("/livez"))[0] != 200:
                made.operator.kill()
                await made.operator.ended()
                await made.operator.start()
                num_restarts += 1
        assert await _pods(made.site) == before
        made.proxy.set(None)
        await made.change()
        took_s = await made.settle("after the outage")
        assert await _pods(made.site) >= before - {pod for pod in before if pod[0].startswith("llama-0-")}
        assert not made.operator.breakages()
    progress(
        f"outage: {OUTAGE_S:g} s without the API server, {len(before)} pods untouched, {num_restarts} restarts by the "
        f"probe; caught up after {took_s:.1f} s"
    )


async def test_it_is_never_alive_and_blind_for_longer_than_allowed(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    async with scene(control_plane, tmp_path, "blind", maxBlindSeconds=BLIND_S) as made:
        made.proxy.set(Fault(How.HANG, verbs=("watch", "list")))

        async def is_failing() -> object:
            status, text = await made.operator.page("/livez")
            return True if status == 503 and "was not heard" in text else f"{status} {text}"

        blind_s = await until("the liveness probe", is_failing, BLIND_S + 5)
        made.operator.kill()
        await made.operator.ended()
        made.proxy.set(None)
        await made.operator.start()
        await made.change()
        took_s = await made.settle("after blindness")
        await made.must_live()
    progress(f"blind: the liveness probe fails {blind_s:.0f} s after the last word; caught up after {took_s:.1f} s")


async def _pods(site: Site) -> set[tuple[str, str, str]]:
    """Pods as (name, uid, when they were to go): what nobody may change."""
    found = (await site.children())["pods"]
    return {(m["name"], m["uid"], m.get("deletionTimestamp", "")) for m in (pod["metadata"] for pod in found)}
