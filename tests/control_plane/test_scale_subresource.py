"""Mode Manual is scaled by others, through the scale subresource: by a person, and by a HorizontalPodAutoscaler.

The real autoscaler, which needs no metrics for what its bounds alone demand; pods run on simulated nodes.
"""

from pathlib import Path

import pytest

from capstan_api import names
from cluster import campaign
from cluster.campaign import MERGE, resource
from cluster.embedded import EmbeddedCluster
from cluster.operator_process import operator, until

pytestmark = pytest.mark.e2e

# It looks every 15 s, and has to find out about the resource's kind first.
WITHIN_S = 120.0
AUTOSCALERS = "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers"


async def test_a_person_and_an_autoscaler_set_the_replicas_in_mode_manual(
    control_plane: EmbeddedCluster, tmp_path: Path
) -> None:
    campaign.install_kind(control_plane)
    async with (
        campaign.direct(control_plane.kubeconfig) as api,
        campaign.site(control_plane, api, "scaled") as site,
        operator(control_plane.kubeconfig, tmp_path, [site.namespace]) as process,
    ):
        await site.declare(resource("llama", 1))
        await until("as declared", lambda: site.is_converged("llama", 1), WITHIN_S)

        control_plane.kubectl("--namespace", site.namespace, "scale", names.PLURAL, "llama", "--replicas=2")
        await until("the person's number", lambda: site.is_converged("llama", 2), WITHIN_S)

        target = {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": "llama"}
        autoscaler = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "llama"},
            "spec": {"scaleTargetRef": target, "minReplicas": 4, "maxReplicas": 5},
        }
        path = AUTOSCALERS.format(site.namespace)
        await api.must("POST", path, autoscaler)
        await until("the autoscaler's least", lambda: site.is_converged("llama", 4), WITHIN_S)
        await api.must("PATCH", f"{path}/llama", {"spec": {"minReplicas": 1, "maxReplicas": 3}}, MERGE)
        await until("the autoscaler's most", lambda: site.is_converged("llama", 3), WITHIN_S)

        async def looks_for_metrics() -> object:
            status = (await api.must("GET", f"{path}/llama")).get("status", {})
            reasons = {each["type"]: each["reason"] for each in status.get("conditions", ())}
            return reasons.get("ScalingActive") == "FailedGetResourceMetric" or reasons

        # Within its bounds it goes by metrics of the pods that the selector names, and there are none here.
        await until("the selector is understood", looks_for_metrics, WITHIN_S)
        assert not process.breakages()
