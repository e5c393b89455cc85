"""What `capstan bench --calibrate OUT` writes, given to a real API server by the command that its help names."""

import json
from pathlib import Path

import pytest

from capstan_api import names, v1alpha1
from capstan_cli import calibrate
from capstan_sim.calibration import Fit
from capstan_sim.step_time import StepModel
from cluster import campaign
from cluster.campaign import resource
from cluster.embedded import EmbeddedCluster

pytestmark = pytest.mark.e2e

VARIANT = {"name": "cpu", "resources": {"cpuMillicores": 1000, "memoryMebibytes": 1536}}


@pytest.mark.parametrize("spec", [{}, {"variants": [VARIANT]}], ids=["default-variant", "declared-variant"])
async def test_a_calibration_becomes_the_resources_step_time_and_a_second_one_replaces_it(
    control_plane: EmbeddedCluster, tmp_path: Path, spec: dict[str, object]
) -> None:
    campaign.install_kind(control_plane)
    namespace = f"calibrated-{len(spec)}"
    async with (
        campaign.direct(control_plane.kubeconfig) as api,
        campaign.site(control_plane, api, namespace) as site,
    ):
        await site.declare(resource("llama", 1, **spec))
        for profile in ("llama3-70b-4xh100", "llama3-8b-h100"):
            model, out = StepModel.named(profile), tmp_path / "out.json"
            calibrate.write(out, Fit(model, num_steps=100, error=0.01))
            control_plane.kubectl(
                "--namespace", namespace, "patch", "infd", "llama", "--type", "json", "--patch-file", str(out)
            )
            told = control_plane.kubectl("--namespace", namespace, "get", names.PLURAL, "llama", "--output=json")
            declared = v1alpha1.parse(json.loads(told)).spec.variant.step_time
            assert declared is not None
            assert StepModel.of(declared, num_gpus=model.num_gpus) == model
