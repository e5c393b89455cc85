"""Edits by the thousand, good and bad: nothing breaks the operator, and what is bad is said where the person looks.

First before the real CustomResourceDefinition, which must take exactly what the contract takes. Then before one that
takes every spec, as that of another version might: what cannot be understood becomes a condition, the engines go on as
they were, and a good spec is obeyed again.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster import campaign
from cluster.campaign import CRD, MERGE, Site, is_full, resource
from cluster.campaign_mutations import draw, is_valid, relaxed_crd
from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = pytest.mark.e2e

NUM_SPECS = 2000 if is_full() else 60
NUM_RESOURCES = 6
SAID_WITHIN_S = 60.0


@asynccontextmanager
async def scene(plane: EmbeddedCluster, folder: Path, namespace: str) -> AsyncIterator[tuple[Site, OperatorProcess]]:
    async with (
        campaign.direct(plane.kubeconfig) as api,
        campaign.site(plane, api, namespace) as site,
        operator(plane.kubeconfig, folder, [namespace]) as process,
    ):
        for number in range(NUM_RESOURCES):
            await site.declare(resource(f"llama-{number}"))
        yield site, process


async def edit(site: Site, name: str, spec: Any) -> int:
    """Put this spec in place of the present one; returns the status code."""
    live = await site.live(name)
    status, answer = await site.api.send("PUT", site.path(name), {**live, "spec": spec})
    assert status in (200, 409, 422), f"{status}: {answer.get('message')}: {json.dumps(spec)}"
    return status if status != 409 else await edit(site, name, spec)


async def is_answered(site: Site, name: str, valid: str) -> object:
    """True when the operator has judged the spec as it is now."""
    live = await site.live(name)
    conditions = {c["type"]: c for c in live.get("status", {}).get("conditions", ())}
    said, generation = conditions.get("ConfigurationValid", {}), live["metadata"]["generation"]
    judged = (said.get("observedGeneration"), live.get("status", {}).get("observedGeneration"))
    answered = said.get("status") == valid and judged == (generation, generation)
    return True if answered else f"{said} of generation {generation}: {live['spec']}"


async def in_parallel(specs: list[Any], work: Any) -> None:
    """Have `work(resource's name, spec)` done for every spec, each resource with one at a time."""
    left = iter(specs)

    async def worker(name: str) -> None:
        for spec in left:
            await work(name, spec)

    async with asyncio.TaskGroup() as tasks:
        for number in range(NUM_RESOURCES):
            tasks.create_task(worker(f"llama-{number}"))


async def settle(site: Site, operator: OperatorProcess) -> None:
    """With a good spec each resource is what it was, and nothing was ever broken."""
    for name in sorted(site.resources):
        await edit(site, name, resource(name, 2)["spec"])
    for name in sorted(site.resources):
        await until(f"{name} after all", lambda name=name: site.is_converged(name, 2), SAID_WITHIN_S)
    assert not operator.breakages()
    assert await operator.page("/livez") == (200, "ok")


async def test_the_api_server_takes_what_the_contract_takes_and_the_operator_obeys(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    good, bad = draw(NUM_SPECS, valid=True), draw(NUM_SPECS, valid=False)
    began = time.monotonic()
    async with scene(control_plane, tmp_path, "mutations") as (site, process):

        async def work(name: str, spec: Any) -> None:
            valid = is_valid({**resource(name), "spec": spec})
            assert await edit(site, name, spec) == (200 if valid else 422), json.dumps(spec)
            if valid:
                await until(f"{spec}", lambda: is_answered(site, name, "True"), SAID_WITHIN_S)

        # Bad between good, so that every refusal meets a resource that is in motion.
        await in_parallel([spec for pair in zip(good, bad, strict=True) for spec in pair], work)
        await settle(site, process)
    progress(
        f"mutations: {len(good)} valid specs taken and answered, {len(bad)} invalid ones refused by the API server "
        f"in {time.monotonic() - began:.0f} s; no exception"
    )


async def test_what_the_api_server_lets_through_becomes_a_condition_and_good_recovers(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    bad = draw(NUM_SPECS, valid=False, garbage=True)
    began = time.monotonic()
    try:
        async with scene(control_plane, tmp_path, "relaxed") as (site, process):
            for name in sorted(site.resources):
                await until(name, lambda name=name: site.is_converged(name, 1), SAID_WITHIN_S)
            control_plane.kubectl("replace", "-f", "-", stdin=json.dumps(_replacing(control_plane, relaxed_crd())))
            await until("the relaxed CustomResourceDefinition", lambda: _takes_anything(site), SAID_WITHIN_S)

            async def work(name: str, spec: Any) -> None:
                before = {pod["metadata"]["uid"] for pod in await site.pods(name)}
                assert await edit(site, name, spec) == 200
                await until(f"{spec}", lambda: is_answered(site, name, "False"), SAID_WITHIN_S)
                assert {pod["metadata"]["uid"] for pod in await site.pods(name)} == before
                assert await edit(site, name, resource(name)["spec"]) == 200
                await until(f"good after {spec}", lambda: is_answered(site, name, "True"), SAID_WITHIN_S)

            await in_parallel(bad, work)
            await settle(site, process)
    finally:
        strict = json.loads(control_plane.kubectl("create", "--dry-run=client", "-o", "json", "-f", str(CRD)))
        control_plane.kubectl("replace", "-f", "-", stdin=json.dumps(_replacing(control_plane, strict)))
    progress(
        f"mutations: {len(bad)} invalid specs past the API server became a condition, and a good one recovered each, "
        f"in {time.monotonic() - began:.0f} s; no exception"
    )


async def _takes_anything(site: Site) -> object:
    status, answer = await site.api.send(
        "PATCH", f"{site.path('llama-0')}?dryRun=All", {"spec": {"scaling": "anything"}}, MERGE
    )
    return True if status == 200 else answer.get("message")


def _replacing(plane: EmbeddedCluster, crd: dict[str, Any]) -> dict[str, Any]:
    name = crd["metadata"]["name"]
    live = json.loads(plane.kubectl("get", "crd", name, "--output=json"))
    version = live["metadata"]["resourceVersion"]
    return {**crd, "metadata": {**crd["metadata"], "resourceVersion": version}}
