"""On a real node no request is lost: not by rollouts, also those that fail, nor by scaling down and up, also from
zero, nor by an operator that dies or an API server that is away.
"""

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from cluster.cluster import Cluster
from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.installation import QUICKSTART, Deployed, Installation
from cluster.streams import streaming

pytestmark = [pytest.mark.e2e, pytest.mark.needs_cluster("pods", "services", "image_loading")]

FULL = os.environ.get("CAPSTAN_CAMPAIGNS") == "full"
# At least so many of either.
NUM_ROLLOUTS, NUM_STREAMS = (20, 2000) if FULL else (2, 1)
CLIENTS = 6
OUTAGE_S = 600 if FULL else 30
SMALL = [{"name": "cpu", "precision": "BFloat16", "resources": {"cpuMillicores": 300}}]
# More than any node has.
HUGE = [{"name": "cpu", "precision": "BFloat16", "resources": {"cpuMillicores": 900_000}}]


@pytest.fixture(scope="module")
def deployed(installation: Installation, cluster: Cluster) -> Iterator[Deployed]:
    """The example with as many replicas as a test asks for by hand."""
    with cluster.namespace() as namespace:
        made = Deployed(cluster, namespace, "quickstart")
        made.kubectl("apply", "-f", str(QUICKSTART))
        made.patch(variants=SMALL, scaling={"mode": "Manual", "replicas": 1, "maxReplicas": 3})
        made.until_condition("Ready", within_s=240)
        yield made
        made.kubectl("delete", "-f", str(QUICKSTART), "--wait")


async def test_rollouts_under_load_lose_no_stream(deployed: Deployed, progress: Progress) -> None:
    async with streaming(deployed.url(), "capstan-tiny", CLIENTS) as streams:
        number = 0
        while number < NUM_ROLLOUTS or streams.whole < NUM_STREAMS:
            number += 1
            before = deployed.status()["revision"]
            deployed.patch(engine={"batching": {"maxSequences": 30 + number % 2}})
            await _until(deployed, lambda status, old=before: _rolled(status, old), "rolled out")
    progress(f"{number} rollouts: {streams.whole} whole streams, {streams.hurt or 'none'} hurt")
    assert streams.hurt == {}


async def test_a_revision_that_never_becomes_ready_is_rolled_back(deployed: Deployed, progress: Progress) -> None:
    await _until(deployed, lambda _: len(deployed.pods()) == 1, "alone")
    [serving] = deployed.pods()
    async with streaming(deployed.url(), "capstan-tiny", CLIENTS) as streams:
        deployed.patch(variants=HUGE, rollout={"progressDeadlineSeconds": 10})
        await _until(deployed, lambda status: _reason(status, "RolloutHealthy") == "RolledBack", "rolled back")
        await _until(deployed, lambda _: len(deployed.pods()) == 1, "alone again")
    progress(f"a rollback: {streams.whole} whole streams, {streams.hurt or 'none'} hurt")
    assert streams.whole > 0
    assert streams.hurt == {}
    assert [pod["metadata"]["uid"] for pod in deployed.pods()] == [serving["metadata"]["uid"]]
    # Once the specification says again what runs, nothing is left to complain of.
    deployed.patch(variants=SMALL)
    await _until(deployed, lambda status: _reason(status, "RolloutHealthy") == "Stable", "healthy again")


async def test_a_scale_down_drains_its_victim_though_the_operators_die_meanwhile(
    deployed: Deployed, installation: Installation, progress: Progress
) -> None:
    deployed.kubectl("scale", "infd/quickstart", "--replicas=2")
    await _until(deployed, lambda status: status.get("readyReplicas") == 2, "2 replicas ready")
    async with streaming(deployed.url(), "capstan-tiny", CLIENTS) as streams:
        await asyncio.sleep(5)
        deployed.kubectl("scale", "infd/quickstart", "--replicas=1")
        await asyncio.sleep(1)
        deployed.cluster.kubectl(
            "-n", installation.namespace, "delete", "pods", "-l", "app.kubernetes.io/component=operator",
            "--grace-period=0", "--force",
        )  # fmt: skip
        await _until(deployed, lambda status: status.get("replicas") == 1, "back at 1 replica")
    progress(f"scale-down with dead operators: {streams.whole} whole streams, {streams.hurt or 'none'} hurt")
    assert streams.whole > 0
    assert streams.hurt == {}


@pytest.mark.needs_cluster("pods", "services", "image_loading", "faults")
async def test_clients_do_not_notice_that_the_api_server_is_away(
    deployed: Deployed, cluster: EmbeddedCluster, progress: Progress
) -> None:
    server = cluster.run.daemons["kube-apiserver"]
    before = {pod["metadata"]["uid"] for pod in deployed.pods()}
    async with streaming(deployed.url(), "capstan-tiny", CLIENTS) as streams:
        server.kill()
        await asyncio.sleep(OUTAGE_S)
        server.start()
        await asyncio.to_thread(_until_answers, cluster)
        # One that saw a pod of the same name come back while it saw nothing takes its own memory for corrupt and ends
        # (kube-scheduler, cache.go). A node's kubelet would start it again; here nobody does.
        scheduler = cluster.run.daemons["kube-scheduler"]
        scheduler.kill()
        scheduler.start()
    progress(f"API server away for {OUTAGE_S} s: {streams.whole} whole streams, {streams.hurt or 'none'} hurt")
    assert streams.whole > 0
    assert streams.hurt == {}
    await _until(deployed, lambda status: status.get("readyReplicas") == 1, "1 replica ready")
    assert {pod["metadata"]["uid"] for pod in deployed.pods()} == before


async def test_shadow_only_recommends_and_zero_wakes_for_a_held_request(
    deployed: Deployed, installation: Installation, progress: Progress
) -> None:
    deployed.patch(scaling={"mode": "Shadow", "minReplicas": 2})
    await _until(deployed, lambda status: status.get("recommendation", {}).get("toValue") == "2", "recommended")
    assert len(deployed.pods()) == 1

    deployed.patch(
        scaling={"mode": "Auto", "minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 5}},
        # As long as everything here may take.
        routing={"hold": {"timeoutSeconds": 240}},
    )
    await _until(deployed, lambda _: deployed.pods() == [], "at zero")
    began = time.monotonic()
    async with openai.AsyncOpenAI(base_url=f"{deployed.url()}/v1", api_key="none", max_retries=0) as client:
        try:
            answer = await client.completions.create(model="capstan-tiny", prompt="Once upon a time", max_tokens=8)
        except openai.APIStatusError as error:
            after_s = time.monotonic() - began
            raise AssertionError(
                f"{error.status_code} after {after_s:.1f} s: {error.body}\n{deployed.kubectl('get', 'pods')}\n"
                f"{installation.log()}"
            ) from None
    assert answer.choices[0].text
    progress(f"from zero: answered after {time.monotonic() - began:.1f} s")


def _reason(status: dict[str, Any], kind: str) -> str | None:
    return next((each["reason"] for each in status["conditions"] if each["type"] == kind), None)


def _rolled(status: dict[str, object], old: str) -> bool:
    return status["revision"] != old and status["replicas"] == status["readyReplicas"] == 1


async def _until(deployed: Deployed, holds: Callable[[dict[str, object]], bool], what: str) -> None:
    """In a thread: the clients of this loop go on streaming."""
    await asyncio.to_thread(deployed.until, holds, what, 240.0)


def _until_answers(cluster: Cluster) -> None:
    deadline = time.monotonic() + 60
    while not cluster.answers("/readyz"):
        assert time.monotonic() < deadline, "the API server does not come back"
        time.sleep(0.5)
