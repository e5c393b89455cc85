"""Objects of other projects' kinds, on an API server that has them: taken whole, owned, left alone, and taken away.

The kinds are described in `foreign_kinds.yaml`, in our words and as far as we fill them in. An API server prunes what a
kind does not declare, so a field that we misspell is missing from what it gives back.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_api import names
from cluster import campaign
from cluster.campaign import ROOT, Site, owner, resource
from cluster.cluster import CommandFailed
from cluster.embedded import EmbeddedCluster
from cluster.operator_process import OperatorProcess, operator, until

pytestmark = pytest.mark.e2e

KINDS = Path(__file__).with_name("foreign_kinds.yaml")
MONITORS, POOLS = "/apis/monitoring.coreos.com/v1", "/apis/inference.networking.k8s.io/v1"
NAME = "llama"
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def plane(control_plane: EmbeddedCluster) -> Iterator[EmbeddedCluster]:
    """A control plane that has the kinds, for these tests only."""
    control_plane.kubectl("apply", "-f", str(KINDS))
    control_plane.kubectl("wait", "--for=condition=Established", "-f", str(KINDS), "--timeout=60s")
    yield control_plane
    control_plane.kubectl("delete", "-f", str(KINDS), "--wait")


@asynccontextmanager
async def scene(
    plane: EmbeddedCluster, folder: Path, namespace: str, **spec: Any
) -> AsyncIterator[tuple[Site, OperatorProcess]]:
    """One resource in a namespace, and an operator that looks after it."""
    campaign.install_kind(plane)
    async with (
        campaign.direct(plane.kubeconfig) as api,
        campaign.site(plane, api, namespace) as site,
        operator(plane.kubeconfig, folder, [namespace]) as process,
    ):
        await site.declare(resource(NAME, **spec))
        yield site, process


async def made(site: Site) -> dict[str, dict[str, Any]]:
    """What there is of the kinds, by plural; one of each at most."""
    found = {}
    for base, plural in ((MONITORS, "podmonitors"), (POOLS, "inferencepools")):
        for item in await site.api.items(f"{base}/namespaces/{site.namespace}/{plural}"):
            assert plural not in found
            found[plural] = item
    return found


async def are(site: Site, *plurals: str) -> object:
    """True when exactly these kinds have an object."""
    found = set(await made(site))
    return found == set(plurals) or found


async def test_monitor_and_pool_are_made_whole_and_a_restart_writes_neither(
    plane: EmbeddedCluster, tmp_path: Path
) -> None:
    async with scene(plane, tmp_path, "optional-kinds", routing={"inferencePool": "Enabled"}) as (site, process):
        await until("converged", lambda: site.is_converged(NAME, 1), WITHIN_S)
        await until("both are made", lambda: are(site, "podmonitors", "inferencepools"), WITHIN_S)
        objects = await made(site)
        uid = (await site.live(NAME))["metadata"]["uid"]
        assert {owner(item) for item in objects.values()} == {uid}

        (pod,) = await site.pods(NAME)
        labels = pod["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        monitor, pool = objects["podmonitors"]["spec"], objects["inferencepools"]["spec"]
        assert monitor == {
            "selector": {"matchLabels": {names.LABEL_DEPLOYMENT: NAME}},
            "podTargetLabels": [names.LABEL_DEPLOYMENT, names.LABEL_COMPONENT, names.LABEL_REVISION],
            "podMetricsEndpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    "relabelings": [
                        {
                            # By the API server.
                            "action": "replace",
                            "sourceLabels": ["__meta_kubernetes_pod_label_capstan_dev_deployment"],
                            "targetLabel": "deployment",
                        }
                    ],
                }
            ],
        }
        assert monitor["selector"]["matchLabels"].items() <= labels.items()
        assert pool["selector"]["matchLabels"].items() <= labels.items()
        assert pool["targetPorts"] == [{"number": ports["http"]}]
        assert pool["endpointPickerRef"].items() >= {"name": f"{NAME}-epp", "port": {"number": 9002}}.items()

        # Another life finds what the API server has added and takes none of it for a change.
        await process.stop()
        await process.start()

        async def has_turned() -> bool:
            # Whatever its outcome: nothing listens on a simulated gateway.
            return bool(await process.metric("capstan_operator_turns_total") >= 2)

        await until("a turn of the second life", has_turned, WITHIN_S)
        again = await made(site)
        for plural, item in objects.items():
            assert again[plural]["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"], plural
        assert not process.breakages()


async def test_a_switch_takes_away_what_it_gave(plane: EmbeddedCluster, tmp_path: Path) -> None:
    async with scene(plane, tmp_path, "optional-switches", routing={"inferencePool": "Enabled"}) as (site, _):
        await until("both are made", lambda: are(site, "podmonitors", "inferencepools"), WITHIN_S)
        await site.edit(NAME, {"routing": {"inferencePool": "Disabled"}})
        await until("the pool is gone", lambda: are(site, "podmonitors"), WITHIN_S)
        await site.edit(NAME, {"observability": {"podMonitor": "Disabled"}})
        await until("both are gone", lambda: are(site), WITHIN_S)


def test_the_charts_monitor_and_rules_are_taken_whole(plane: EmbeddedCluster) -> None:
    with plane.namespace() as namespace:
        switched = ("podMonitor.enabled=true", "prometheusRule.enabled=true", "dashboards.enabled=true")
        settings = [part for each in switched for part in ("--set", f"monitoring.{each}")]
        # The definition may be another test's, and Helm takes over none.
        settings += ["--set", "crds.enabled=false"]
        plane.helm("install", "optional", str(ROOT / "helm/capstan"), "--namespace", namespace, *settings)
        manifest = plane.helm("get", "manifest", "optional", "--namespace", namespace)
        rendered = [document for document in yaml.safe_load_all(manifest) if document]
        ours = {each["kind"]: each for each in rendered if each["kind"] in ("PodMonitor", "PrometheusRule")}
        assert len(ours) == 2
        for kind, wanted in ours.items():
            name = wanted["metadata"]["name"]
            live = json.loads(plane.kubectl("-n", namespace, "get", kind.lower(), name, "--output=json"))
            assert live["spec"] == wanted["spec"], kind
        plane.helm("uninstall", "optional", "--namespace", namespace, "--wait")


def test_the_api_server_would_have_noticed(plane: EmbeddedCluster) -> None:
    """The others rest on it: what is misspelt is not kept, and what is wrong is refused."""
    spec: dict[str, Any] = {
        "endpointPickerRef": {"name": "epp"},
        "selector": {"matchLabels": {"a": "b"}},
        "targetPorts": [{"number": 8100}],
        "targetPort": 8100,
    }
    kind = {"apiVersion": "inference.networking.k8s.io/v1", "kind": "InferencePool", "metadata": {"name": "misspelt"}}
    with plane.namespace() as namespace:
        apply = ("-n", namespace, "apply", "--validate=false", "-f", "-")
        with pytest.raises(CommandFailed, match="a Service is reached by a port"):
            plane.kubectl(*apply, stdin=json.dumps({**kind, "spec": spec}))
        spec["endpointPickerRef"]["port"] = {"number": 9002}
        plane.kubectl(*apply, stdin=json.dumps({**kind, "spec": spec}))
        live = json.loads(plane.kubectl("-n", namespace, "get", "inferencepool", "misspelt", "--output=json"))
        assert live["spec"].keys() == spec.keys() - {"targetPort"}
