"""Every panel has data on a real Prometheus that scrapes a real deployment under load.

What only an operator in a cluster has to tell (leadership, watches, requests to the API server) is shown there, by the
tests of the cluster.
"""

import asyncio
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboards.ask import NoAnswer, with_choices
from dashboards.draw import Drawing
from scraped import NAMESPACE, Scraped, scraped

from capstan_api.metrics import Operator
from capstan_api.v1alpha1 import parse
from capstan_operator.errors import ModelNotFound
from capstan_operator.world.processes.checkpoints import checkpoint_directory

pytestmark = pytest.mark.slow
NAME = "chat"
WITHIN_S = 90.0
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
ONLY_IN_A_CLUSTER = (
    Operator.API_REQUESTS,
    Operator.API_SECONDS,
    Operator.WATCH_AGE,
    Operator.OBJECTS,
    Operator.IS_LEADER,
    Operator.TURN_INTERVAL,
)


def asked(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(panel, query) of every panel, with a viewer's choices in place."""
    choices = {"namespace": NAMESPACE, "deployment": NAME, "__rate_interval": "15s", "__range": "5m"}
    # The operator lives in a namespace of its own.
    if document["uid"] == "capstan-operator":
        choices["namespace"] = ".*"
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", with_choices(target["expr"], **choices)
    for annotation in document.get("annotations", {}).get("list", []):
        yield annotation["name"], with_choices(annotation["expr"], **choices)


def has_data(running: Scraped, expr: str) -> bool:
    """Whether the query gives at least one number, and not only NaN."""
    try:
        lines = running.prometheus.at(expr, time.time())
    except NoAnswer as error:
        if "Connection refused" in str(error):
            return False
        raise
    return any(math.isfinite(value) for line in lines for _, value in line.points)


async def all_have_data(running: Scraped, queries: dict[tuple[str, str], str]) -> None:
    """Wait until each of the queries has given data at least once."""
    empty, deadline = dict(queries), time.monotonic() + WITHIN_S
    while empty and time.monotonic() < deadline:
        await asyncio.sleep(1)  # Prometheus has no event for data that arrived
        answers = await asyncio.gather(*(asyncio.to_thread(has_data, running, expr) for expr in empty.values()))
        empty = {query: expr for (query, expr), answer in zip(empty.items(), answers, strict=True) if not answer}
    assert empty == {}


async def test_every_panel_has_data(documents: dict[str, dict[str, Any]], prometheus: str, tmp_path: Path) -> None:
    try:
        checkpoint_directory("bundled://capstan-tiny")
    except ModelNotFound as error:
        pytest.skip(str(error))
    queries = {
        (name, panel): expr
        for name, document in documents.items()
        for panel, expr in asked(document)
        if not any(metric.name in expr for metric in ONLY_IN_A_CLUSTER)
    }
    assert len(queries) > 70
    # A mark needs a decision: the deployment's bounds are raised once everything else is seen.
    decisions = {query: expr for query, expr in queries.items() if query[1] == "Decisions"}
    async with scraped(DEPLOYMENT, tmp_path, prometheus, [(0, 6)]) as running:
        await all_have_data(running, {query: expr for query, expr in queries.items() if query not in decisions})
        raised = copy.deepcopy(DEPLOYMENT)
        raised["spec"]["scaling"]["minReplicas"] = 2
        running.deployment = parse(raised)
        await all_have_data(running, decisions)
        assert [turn.error for turn in running.turns if turn.error] == []

        # And what was asked can be drawn, with the decision.
        end = time.time()
        for name, document in documents.items():
            namespace = ".*" if name == "operator" else NAMESPACE
            drawing = Drawing(running.prometheus, end - 60, end, namespace=namespace, deployment=NAME)
            await asyncio.to_thread(drawing.write, document, tmp_path / f"{name}.png")
            assert (tmp_path / f"{name}.png").stat().st_size > 20_000
            marks = await asyncio.to_thread(drawing.marks, document)
            assert [mark.text.partition(":")[0] for mark in marks] == ([] if name == "operator" else ["ScaleUp"])
