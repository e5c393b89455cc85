"""The webhook of the chart on a real node: engines tell what a model takes, and what cannot be is refused at once."""

import asyncio
import copy

import openai
import pytest
import yaml

from cluster.cluster import Cluster, CommandFailed
from cluster.installation import QUICKSTART, Deployed, Installation
from cluster.operator_process import until

pytestmark = pytest.mark.e2e

ANSWERS_WITHIN_S = 60.0


@pytest.mark.slow
@pytest.mark.needs_cluster("pods", "services", "image_loading")
async def test_the_chart_is_enough_for_engines_to_have_a_say(installation: Installation, namespace: str) -> None:
    cluster = installation.cluster
    deployed = Deployed(cluster, namespace, "quickstart")
    deployed.kubectl("apply", "--warnings-as-errors", "-f", str(QUICKSTART))
    deployed.until_condition("Ready", within_s=240)
    deployed.until(lambda status: '"told":{' in status.get("memory", ""), "told what the model takes", within_s=120)
    bigger = copy.deepcopy(yaml.safe_load(QUICKSTART.read_text()))
    bigger["metadata"]["name"] = "bigger"
    bigger["spec"]["engine"]["kvCache"]["memoryMebibytes"] = 1500

    async def is_refused() -> object:
        try:
            cluster.apply(namespace, bigger, "--dry-run=server")
        except CommandFailed as refusal:
            return True if "MiB of memory are needed" in str(refusal) else str(refusal)
        return "stored"

    await until("the engine's word counts", is_refused, ANSWERS_WITHIN_S)

    client = openai.OpenAI(base_url=f"{deployed.url()}/v1", api_key="none", max_retries=0)
    strict = copy.deepcopy(yaml.safe_load(QUICKSTART.read_text()))
    strict["spec"]["slos"][0]["tpot"]["thresholdMilliseconds"] = 1

    async def is_warned_of() -> object:
        # The pace is learnt from requests; one at a time, so that it is that of one alone.
        for _ in range(4):
            await asyncio.to_thread(
                client.completions.create, model="capstan-tiny", prompt="Once upon a time " * 8, max_tokens=32
            )
        try:
            cluster.apply(namespace, strict, "--dry-run=server")
        except CommandFailed as said:
            return True if "could be met" in str(said) else str(said)
        return "no warning"

    # The law's memory travels with the status, which is written when there is something to tell.
    await until("a threshold that nobody meets is warned of", is_warned_of, 180)
    before = _trusted(cluster, installation.namespace)
    installation.install()
    assert _trusted(cluster, installation.namespace) == before, "an upgrade keeps the certificate"
    deployed.kubectl("delete", "-f", str(QUICKSTART), "--wait")


def _trusted(cluster: Cluster, namespace: str) -> str:
    name = f"capstan-admission.{namespace}"
    return cluster.kubectl(
        "get", "validatingwebhookconfiguration", name, "--output=jsonpath={.webhooks[0].clientConfig.caBundle}"
    )
