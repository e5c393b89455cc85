"""A real API server asks the webhook: what is refused is not stored, what is doubtful is told, and nothing is held up.

An operator of this machine before simulated nodes, which stands by and has seen what engines told; the chart on a real
node, where engines tell it themselves, is tried in `tests/cluster`.
"""

import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from capstan_api import names
from capstan_api.v1alpha1 import parse
from capstan_operator.decide import render
from capstan_operator.decide.feasibility import Told, model_key
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.memory import Memory
from capstan_operator.decide.seen.signals import Lengths
from capstan_operator.decide.seen.steps import StepSample
from cluster import campaign
from cluster.cluster import CommandFailed
from cluster.controlplane import free_ports
from cluster.embedded import EmbeddedCluster
from cluster.installation import CHART
from cluster.operator_process import OperatorProcess, operator, until
from cluster.pki import Authority
from memory_figures import FIGURES

pytestmark = pytest.mark.e2e

ANSWERS_WITHIN_S = 60.0
# Small enough for a replica of 4096 MiB.
LIGHT = FIGURES.model_copy(update={"weights": 20 << 20, "position": 256})
TOO_LONG = {"source": {"uri": "bundled://capstan-tiny"}, "maxModelLength": 9000}
TOO_FAST = [{"name": "interactive", "tpot": {"thresholdMilliseconds": 3}}]


def resource(name: str, **spec: Any) -> dict[str, Any]:
    """One whose KV cache holds 8192 tokens of the model that engines have told of."""
    return campaign.resource(name, engine={"kvCache": {"memoryMebibytes": 512}}, **spec)


def remembered(manifest: dict[str, Any]) -> str:
    """The memory of an operator whose engines took 4 ms a step and 1 ms a sequence, and told their figures."""
    of = parse(manifest)
    steps = [
        StepSample(i, float(i), 0.004 + 64 * (i % 5) * 0.0002 + (1 + i % 13) * 0.001, 64 * (i % 5), 1 + i % 13, 0, 0.0)
        for i in range(1, 121)
    ]
    return Memory(
        revision=render.revision(of),
        model=EngineModel().learn(steps),
        lengths=Lengths(prompt=200, output=50, weight=100),
        told=Told(of=model_key(of.spec), figures=LIGHT),
    ).durable()


@asynccontextmanager
async def standby(plane: EmbeddedCluster, folder: Path, namespace: str) -> AsyncIterator[OperatorProcess]:
    """An operator that does not act, because somebody else holds the lease, and that the API server asks."""
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "capstan-operator", "namespace": namespace},
        "spec": {
            "holderIdentity": "somebody-else",
            "leaseDurationSeconds": 3600,
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(lease))
    [port] = free_ports(1)
    authority = Authority(folder / "pki")
    pair = authority.issue("webhook", "webhook", hosts=["127.0.0.1"])
    admission = {"certificateFile": str(pair.certificate), "keyFile": str(pair.key), "host": "127.0.0.1", "port": port}
    async with operator(plane.kubeconfig, folder, [namespace], admission=admission) as process:

        async def is_ready() -> object:
            status, said = await process.page("/readyz")
            return True if status == 200 else said

        await until("the operator knows all", is_ready, ANSWERS_WITHIN_S)
        rendered = plane.helm(
            "template", "capstan", str(CHART), "--namespace", namespace, "--show-only", "templates/admission.yaml",
            "--set", f"watchNamespaces={{{namespace}}}",
        )  # fmt: skip
        [hook] = [each for each in yaml.safe_load_all(rendered) if each["kind"] == "ValidatingWebhookConfiguration"]
        bundle = base64.b64encode(authority.pair.certificate.read_bytes()).decode()
        # Outside of the cluster it has no Service; all else is as the chart has it.
        hook["webhooks"][0]["clientConfig"] = {"url": f"https://127.0.0.1:{port}/validate", "caBundle": bundle}
        plane.kubectl("apply", "-f", "-", stdin=json.dumps(hook))
        try:
            yield process
        finally:
            plane.kubectl("delete", "validatingwebhookconfiguration", hook["metadata"]["name"])


@pytest.fixture
def place(control_plane: EmbeddedCluster) -> Iterator[str]:
    """A namespace with two resources that were stored before anybody judged them; of one, the engines have told."""
    campaign.install_kind(control_plane)
    with control_plane.namespace() as namespace:
        for manifest in (resource("told"), resource("too-long", model=TOO_LONG)):
            control_plane.apply(namespace, manifest)
        status = {"status": {"memory": remembered(resource("told"))}}
        control_plane.kubectl(
            "-n", namespace, "patch", names.PLURAL, "told", "--subresource=status", "--type=merge",
            f"--patch={json.dumps(status)}",
        )  # fmt: skip
        yield namespace


async def test_a_real_api_server_asks_and_obeys(control_plane: EmbeddedCluster, place: str, tmp_path: Path) -> None:
    plane = control_plane

    async def is_asked() -> object:
        try:
            plane.apply(place, resource("asked", model=TOO_LONG), "--dry-run=server")
        except CommandFailed as refusal:
            return True if "denied the request" in str(refusal) else str(refusal)
        return "stored"

    async with standby(plane, tmp_path, place) as process:
        # An API server takes a new configuration over within a moment.
        await until("the API server asks", is_asked, ANSWERS_WITHIN_S)

        with pytest.raises(CommandFailed, match=r"maxModelLength 8192 fits"):
            plane.apply(place, resource("new", model=TOO_LONG))
        with pytest.raises(CommandFailed, match="not found"):
            plane.kubectl("-n", place, "get", names.PLURAL, "new")
        with pytest.raises(CommandFailed, match=r"Warning: .*could be met"):
            plane.apply(place, resource("new", slos=TOO_FAST), "--dry-run=server")
        plane.apply(place, resource("new"))
        with pytest.raises(CommandFailed, match=r"maxModelLength 8192 fits"):
            plane.apply(place, resource("new", model=TOO_LONG))

        # What was stored before is warned of, and still scaled, labelled and deleted.
        plane.kubectl(
            "-n",
            place,
            "patch",
            names.PLURAL,
            "too-long",
            "--type=merge",
            '--patch={"spec":{"scaling":{"replicas":2}}}',
        )
        plane.kubectl("-n", place, "scale", names.PLURAL, "too-long", "--replicas=3", "--warnings-as-errors")
        plane.kubectl("-n", place, "label", names.PLURAL, "too-long", "team=search", "--warnings-as-errors")
        plane.kubectl("-n", place, "delete", names.PLURAL, "too-long", "--warnings-as-errors")

        assert not process.breakages()
        process.kill()
        await process.ended()
        # Nobody answers, and nobody has to.
        plane.kubectl("-n", place, "apply", "-f", "-", stdin=json.dumps(resource("new", model=TOO_LONG)))


async def test_a_certificate_that_is_renewed_is_served_by_the_same_process(
    control_plane: EmbeddedCluster, place: str, tmp_path: Path
) -> None:
    async with standby(control_plane, tmp_path, place):
        authority = Authority(tmp_path / "another")
        pair = authority.issue("webhook", "webhook", hosts=["127.0.0.1"])
        (tmp_path / "pki/webhook.key").write_bytes(pair.key.read_bytes())
        (tmp_path / "pki/webhook.crt").write_bytes(pair.certificate.read_bytes())
        [name] = control_plane.kubectl(
            "get", "validatingwebhookconfiguration", "--output=name", "-l", "app.kubernetes.io/part-of=capstan"
        ).split()
        bundle = base64.b64encode(authority.pair.certificate.read_bytes()).decode()
        patch = [{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
        control_plane.kubectl("patch", name, "--type=json", f"--patch={json.dumps(patch)}")

        async def is_refused() -> object:
            try:
                control_plane.apply(place, resource("new", model=TOO_LONG), "--dry-run=server")
            except CommandFailed as refusal:
                return True if "maxModelLength 8192 fits" in str(refusal) else str(refusal)
            return "stored"

        await until("the renewed certificate", is_refused, ANSWERS_WITHIN_S)
