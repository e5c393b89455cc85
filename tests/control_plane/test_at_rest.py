"""Nothing changes, so nothing is written: several resources, a while in which only the lease is renewed.

What changes by itself is written seldom on purpose: books such as replica hours once an hour, which a full run of ten
minutes does not reach.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import campaign
from cluster.campaign import is_full, resource
from cluster.embedded import EmbeddedCluster
from cluster.fault_proxy import proxy
from cluster.gobuild import Progress
from cluster.operator_process import operator, until

pytestmark = pytest.mark.e2e

NUM_RESOURCES = 6
REST_S = 600.0 if is_full() else 60.0
SETTLES_WITHIN_S = 120.0
# Figures and wording that changed at the beginning are written once more within half a minute.
QUIET_S = 35.0
MOST_ANNOTATIONS_BYTES = 4096


async def test_at_rest_nothing_is_written_but_the_lease(
    control_plane: EmbeddedCluster, tmp_path: Path, progress: Progress
) -> None:
    campaign.install_kind(control_plane)
    async with (
        campaign.direct(control_plane.kubeconfig) as api,
        campaign.site(control_plane, api, "at-rest") as site,
        proxy(control_plane.kubeconfig, tmp_path) as (watched, kubeconfig),
        operator(kubeconfig, tmp_path, [site.namespace]) as process,
    ):
        for number in range(NUM_RESOURCES):
            # A simulated engine says nothing; that this is noticed, once and soon, belongs to the beginning.
            mode = {"mode": "Manual", "replicas": 1} if number % 2 else {"mode": "Auto", "maxReplicas": 3}
            scaling = {**mode, "staleMetrics": {"maxAgeSeconds": 2}}
            await site.declare(resource(f"llama-{number}", scaling=scaling))
        for name in sorted(site.resources):
            await until(name, lambda name=name: site.is_converged(name, 1), SETTLES_WITHIN_S)

        async def is_quiet() -> object:
            last = next(p for p in reversed(watched.passages) if p.request.is_write)
            return time.monotonic() - last.at > QUIET_S or last.request

        await until("quiet after the beginning", is_quiet, SETTLES_WITHIN_S)
        before = await api.items(site.path())
        num_writes, began, used_s = len(watched.writes), len(watched.passages), process.usage()[0]
        since = time.monotonic()
        await asyncio.sleep(REST_S)
        passed_s = time.monotonic() - since
        reads = Counter(p.request.verb for p in watched.passages[began:] if not p.request.is_write)
        largest = max(
            len(json.dumps(item["metadata"].get("annotations", {})))
            for items in [*(await site.children()).values(), await api.items(site.path())]
            for item in items
        )
        progress(
            f"at rest: {len(watched.writes) - num_writes} writes in {passed_s:.0f} s of {NUM_RESOURCES} resources; "
            f"annotations of {largest} bytes at most; {100 * (process.usage()[0] - used_s) / passed_s:.1f} % of a "
            f"processor; reads and renewals {dict(reads)}"
        )
        assert watched.writes[num_writes:] == [], list(differences(before, await api.items(site.path())))
        assert largest < MOST_ANNOTATIONS_BYTES
        assert not process.breakages()


def differences(before: Any, after: Any, path: str = "") -> Iterator[str]:
    """Where two documents differ, one clause each."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() | after.keys()):
            yield from differences(before.get(key), after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from differences(old, new, f"{path}[{number}]")
    elif before != after and not path.endswith((".memory", ".resourceVersion", ".time")):
        yield f"{path}: {before} → {after}"
