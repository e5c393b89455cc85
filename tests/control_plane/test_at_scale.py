"""A thousand resources and ten thousand pods on a control plane alone: what the operator needs, and how quick it stays.

Nothing stands between the operator and the API server here; the figures are the operator's own metrics and what the
kernel says of its process. The short form has fifty resources. The figures go to build/cluster/scale.json.
"""

import asyncio
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from cluster import campaign
from cluster.campaign import ROOT, Direct, Site, is_full, is_ready, resource
from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NUM_RESOURCES = 1000 if is_full() else 50
NUM_REPLICAS = 9 if is_full() else 3
REST_S = 120.0 if is_full() else 15.0
MAKING_WITHIN_S = 1800.0 if is_full() else 120.0
# Figures and wording that changed at last are written once more within half a minute.
QUIET_S = 35.0
NUM_AT_A_TIME = 16
REPORT = ROOT / "build" / "cluster" / "scale.json"
_REQUESTS = "capstan_operator_api_requests_total"


class Figures:
    """What the metrics say of a while."""

    def __init__(self, before: dict[Any, float], after: dict[Any, float]) -> None:
        self._moved = {key: value - before.get(key, 0.0) for key, value in after.items()}

    def total(self, name: str, **labels: str) -> float:
        return sum(v for (n, have), v in self._moved.items() if n == name and labels.items() <= dict(have).items())

    @property
    def num_writes(self) -> float:
        every = sum(self.total(_REQUESTS, verb=verb) for verb in ("create", "patch", "update", "delete"))
        return every - self.total(_REQUESTS, resource="leases")

    def turn_s(self, quantile: float) -> float | None:
        """Upper bound of the bucket that the quantile of turns lies in, in seconds; None beyond all buckets."""
        name = "capstan_operator_reconcile_seconds_bucket"
        buckets = sorted((float(dict(have)["le"]), v) for (n, have), v in self._moved.items() if n == name)
        wanted = quantile * buckets[-1][1]
        return next((bound for bound, count in buckets if count >= wanted and bound < math.inf), None)


async def test_a_thousand_resources_are_made_kept_and_scaled(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    rows: list[dict[str, Any]] = []
    async with (
        campaign.direct(control_plane.kubeconfig) as api,
        campaign.site(control_plane, api, "at-scale") as site,
        operator(control_plane.kubeconfig, tmp_path, [site.namespace]) as process,
    ):

        async def measured(what: str, work: Any) -> None:
            before, (used_s, _), began = await process.samples(), process.usage(), time.monotonic()
            num_decisions = await work()
            passed_s = time.monotonic() - began
            figures = Figures(before, await process.samples())
            cpu_s, resident = process.usage()
            turns = figures.total("capstan_operator_turns_total")
            rows.append(
                {
                    "what": what,
                    "seconds": round(passed_s, 1),
                    "turns": int(turns),
                    "turn_p50_s": figures.turn_s(0.5),
                    "turn_p99_s": figures.turn_s(0.99),
                    "api_calls": int(figures.total(_REQUESTS)),
                    "writes": int(figures.num_writes),
                    "calls_per_decision": round(figures.total(_REQUESTS) / num_decisions, 1) if num_decisions else None,
                    "cpu_percent": round(100 * (cpu_s - used_s) / passed_s, 1),
                    "resident_mebibytes": round(resident),
                }
            )

        async def make() -> int:
            await _each(lambda n: site.declare(resource(f"llama-{n}", NUM_REPLICAS)))
            await until("all pods", lambda: _has(api, site, NUM_RESOURCES * (NUM_REPLICAS + 1)), MAKING_WITHIN_S)
            return NUM_RESOURCES

        async def scale() -> int:
            every_tenth = range(0, NUM_RESOURCES, 10)
            await _each(lambda n: site.edit(f"llama-{n}", {"scaling": {"replicas": NUM_REPLICAS + 1}}), every_tenth)
            wanted = NUM_RESOURCES * (NUM_REPLICAS + 1) + len(every_tenth)
            await until("more pods", lambda: _has(api, site, wanted), MAKING_WITHIN_S)
            return len(every_tenth)

        async def rest() -> int:
            await asyncio.sleep(REST_S)
            return 0

        await measured("made", make)
        await measured("one replica more for every tenth", scale)
        if is_full():
            await _until_quiet(process)
        await measured("at rest", rest)
        await process.stop()
        await process.start()
        await measured("after a restart", lambda: _restarted(process))
        assert not process.breakages()
        assert await process.page("/livez") == (200, "ok")
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    size = {"resources": NUM_RESOURCES, "pods": NUM_RESOURCES * (NUM_REPLICAS + 1)}
    REPORT.write_text(json.dumps({**size, "rows": rows}, indent=2) + "\n")
    progress(f"at scale: {size['resources']} resources, {size['pods']} pods")
    for row in rows:
        progress(", ".join(f"{key} {value}" for key, value in row.items() if value is not None))
    at_rest = next(row for row in rows if row["what"] == "at rest")
    assert at_rest["writes"] == 0 or not is_full()


async def _each(work: Any, numbers: range = range(NUM_RESOURCES)) -> None:
    left = iter(numbers)

    async def worker() -> None:
        for number in left:
            await work(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in itertools.repeat(None, NUM_AT_A_TIME):
            tasks.create_task(worker())


async def _has(api: Direct, site: Site, num_pods: int) -> object:
    await asyncio.sleep(1)
    path = f"/api/v1/namespaces/{site.namespace}/pods"
    # Ten thousand pods are read only when they are there: that costs the API server more than the operator does.
    if (num := await api.count(path)) != num_pods:
        return f"{num} pods, not {num_pods}"
    pods = await api.items(path)
    ready = sum(is_ready(pod) for pod in pods)
    return True if ready == len(pods) == num_pods else f"{ready} ready of {len(pods)} pods, not {num_pods}"


async def _until_quiet(process: OperatorProcess) -> None:
    seen = dict[Any, float]()

    async def is_quiet() -> object:
        nonlocal seen
        before, seen = seen, await process.samples()
        await asyncio.sleep(QUIET_S)
        moved = Figures(before, seen).num_writes
        return True if before and moved == 0 else f"{moved:.0f} writes"

    await until("quiet", is_quiet, MAKING_WITHIN_S)


async def _restarted(process: OperatorProcess) -> int:
    """Until it leads and has come round to every resource."""

    async def is_round() -> object:
        turns = await process.metric("capstan_operator_turns_total")
        return True if turns >= NUM_RESOURCES else f"{turns:.0f} turns"

    await until("a turn of every resource", is_round, MAKING_WITHIN_S)
    return 0
