"""Every panel has data on a real Prometheus: of a real deployment under load, and of a whole operator."""

import asyncio
import copy
import time
from pathlib import Path
from typing import Any

import pytest
from dashboards.draw import Drawing
from prometheus_server import all_have_data, asked, serving
from scraped import NAMESPACE, scraped

from capstan_api.v1alpha1 import parse
from capstan_operator.errors import ModelNotFound
from capstan_operator.world.processes.checkpoints import checkpoint_directory
from fake_kubernetes import FakeKubernetes
from running_operator import NAMESPACE as OPERATOR_NAMESPACE
from running_operator import running

pytestmark = pytest.mark.slow
NAME = "chat"
DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "capstan.dev/v1alpha1",
    "kind": "InferenceDeployment",
    "metadata": {"name": NAME, "namespace": NAMESPACE},
    "spec": {
        "model": {"source": {"uri": "bundled://capstan-tiny"}, "maxModelLength": 512},
        "variants": [{"name": "cpu", "resources": {"cpuMillicores": 500}}],
        "engine": {
            "batching": {"maxSequences": 8, "maxBatchedTokens": 128, "minSequences": 2, "minBatchedTokens": 32},
            "kvCache": {"memoryMebibytes": 64},
        },
        "slos": [
            {"name": "interactive", "ttft": {"thresholdMilliseconds": 800}, "tpot": {"thresholdMilliseconds": 40}},
            {
                "name": "batch",
                "ttft": {"thresholdMilliseconds": 30_000},
                "tpot": {"thresholdMilliseconds": 500},
                "objectivePercent": "90",
            },
        ],
        "scaling": {"minReplicas": 1, "maxReplicas": 2, "batchLimits": {"adjustmentIntervalSeconds": 2}},
    },
}


async def test_every_panel_about_deployments_has_data(
    documents: dict[str, dict[str, Any]], prometheus: str, tmp_path: Path
) -> None:
    try:
        checkpoint_directory("bundled://capstan-tiny")
    except ModelNotFound as error:
        pytest.skip(str(error))
    boards = {name: documents[name] for name in ("overview", "deployment")}
    queries = {
        f"{name}: {what}": expr
        for name, document in boards.items()
        for what, expr in asked(document, namespace=NAMESPACE, deployment=NAME).items()
    }
    assert len(queries) > 60
    # A mark needs a decision: the deployment's bounds are raised once everything else is seen.
    decisions = {query: expr for query, expr in queries.items() if query.endswith(": Decisions")}
    async with scraped(DEPLOYMENT, tmp_path, prometheus, [(0, 6)]) as scene:
        await all_have_data(
            scene.prometheus, {query: expr for query, expr in queries.items() if query not in decisions}
        )
        raised = copy.deepcopy(DEPLOYMENT)
        raised["spec"]["scaling"]["minReplicas"] = 2
        scene.deployment = parse(raised)
        await all_have_data(scene.prometheus, decisions)
        assert [turn.error for turn in scene.turns if turn.error] == []

        # And what was asked can be drawn, with the decision.
        end = time.time()
        for name, document in boards.items():
            drawing = Drawing(scene.prometheus, end - 60, end, namespace=NAMESPACE, deployment=NAME)
            await asyncio.to_thread(drawing.write, document, tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 20_000
            marks = await asyncio.to_thread(drawing.marks, document)
            assert [mark.text.partition(":")[0] for mark in marks] == ["ScaleUp"]


async def test_every_panel_about_the_operator_has_data(
    documents: dict[str, dict[str, Any]], prometheus: str, tmp_path: Path
) -> None:
    board = documents["operator"]
    async with FakeKubernetes() as api_server:
        declared = copy.deepcopy(DEPLOYMENT)
        declared["spec"]["variants"] = [{"name": "gpu", "resources": {"accelerator": {}}}]
        api_server.put("inferencedeployments", parse(declared).document())
        with serving(tmp_path, prometheus) as (server, targets):
            async with running(api_server, acceleratorBudgets=[{"name": "pool", "accelerators": 4}]) as url:
                targets.tell([(url.removeprefix("http://"), {"namespace": OPERATOR_NAMESPACE, "pod": "operator-0"})])
                await all_have_data(server, asked(board, namespace=OPERATOR_NAMESPACE))
                end = time.time()
                drawing = Drawing(server, end - 60, end, namespace=OPERATOR_NAMESPACE)
                await asyncio.to_thread(drawing.write, board, tmp_path / "operator.png")
                assert (tmp_path / "operator.png").stat().st_size > 20_000
