"""The README's path on a real node: install, apply, ask, load; limits move, then replicas, and back."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from cluster.cluster import Cluster
from cluster.gobuild import Progress
from cluster.installation import QUICKSTART, RELEASE, Deployed, Installation

pytestmark = [pytest.mark.e2e, pytest.mark.needs_cluster("pods", "services", "image_loading")]


# More than two small replicas can serve, for long enough that a third starts beside them on two processors.
RATE, LOAD_S = 20, 110


@pytest.fixture
def quickstart(installation: Installation, namespace: str, cluster: Cluster) -> Iterator[Deployed]:
    """The example of the README, in a namespace that admits restricted pods only."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    deployed = Deployed(cluster, namespace, "quickstart")
    deployed.kubectl("apply", "-f", str(QUICKSTART))
    yield deployed
    deployed.kubectl("delete", "-f", str(QUICKSTART), "--wait")


def test_limits_move_then_replicas_rise_and_fall_with_the_load(
    quickstart: Deployed, progress: Progress, tmp_path: Path
) -> None:
    started_s = time.monotonic()
    quickstart.patch(
        scaling={"maxReplicas": 3},
        variants=[{"name": "cpu", "precision": "BFloat16", "resources": {"cpuMillicores": 400}}],
    )
    quickstart.until_condition("Ready", within_s=240)
    progress(f"quickstart: Ready {time.monotonic() - started_s:.1f} s after kubectl apply")

    client = openai.OpenAI(base_url=f"{quickstart.url()}/v1", api_key="none", max_retries=0)
    answer = client.chat.completions.create(
        model="capstan-tiny", messages=[{"role": "user", "content": "Tell me a story."}], max_tokens=16
    )
    assert answer.choices[0].message.content

    with _load(quickstart.url(), tmp_path / "bench.json") as load:
        moved: list[str] = []
        quickstart.until(lambda status: _noted(moved, status) == 3, "3 replicas ready", within_s=240)
        progress(f"quickstart: 3 replicas ready {time.monotonic() - started_s:.1f} s after kubectl apply")
        progress(quickstart.kubectl("get", "infd"))
        load.wait(timeout=LOAD_S + 120)
    results = Counter(request["result"] for request in json.loads((tmp_path / "bench.json").read_text())["requests"])
    progress(f"quickstart: load {dict(results)}")
    # Beyond what three of them serve, the rest is refused; nothing that was accepted is hurt.
    assert results["completed"] > 0
    assert results.keys() <= {"completed", "rejected"}, results
    assert moved == ["limits", "replicas"], moved

    quickstart.until(lambda status: status.get("replicas") == 1, "back at 1 replica", within_s=240)
    progress(f"quickstart: back at 1 replica {time.monotonic() - started_s:.1f} s after kubectl apply")
    actions = quickstart.kubectl("get", "events", '--output=jsonpath={range .items[*]}{.action}{"\\n"}{end}').split()
    assert {"ScaleUp", "ScaleDown"} <= set(actions), actions


def _noted(moved: list[str], status: dict[str, Any]) -> int:
    """Note what has left its first value, in the order in which it was seen to; returns the replicas that are ready."""
    if "limits" not in moved and status["summary"]["batch"] != "32x1024":
        moved.append("limits")
    if "replicas" not in moved and status["desiredReplicas"] > 1:
        moved.append("replicas")
    return int(status["readyReplicas"])


def _load(url: str, report: Path) -> subprocess.Popen[bytes]:
    """The project's own load generator, as a person would start it."""
    command = (
        sys.executable, "-m", "capstan_cli", "bench", url, "--rate", str(RATE), "--duration", str(LOAD_S),
        "--model", "capstan-tiny", "--allow-remote", "--json", str(report),
    )  # fmt: skip
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_helm_test_finds_that_an_operator_acts(installation: Installation) -> None:
    command = ("test", RELEASE, "--namespace", installation.namespace, "--logs", "--timeout", "90s")
    assert "acts, 1 collection(s) can be read" in installation.cluster.helm(*command)
