"""The README's commands on a real node, in the README's order, as a reader types them.

Three things differ: the chart is told the tags of the images that were built, the forwarded port is a free one, and
`--watch`, which nobody ends, is ended. `tests/test_readme.py` says which commands are left to other tests.
"""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from cluster.embedded import EmbeddedCluster
from cluster.gobuild import Progress
from cluster.images import Image
from cluster.installation import CRD, image_settings
from readme import ROOT, commands

# Other clusters have a default namespace with things of their own in it.
pytestmark = [pytest.mark.e2e, pytest.mark.needs_cluster("pods", "services", "image_loading", "faults")]

SYSTEM = "capstan-system"
WITHIN_S = 330.0


class Reader:
    """Types one command after the other, and notes what each said."""

    def __init__(self, cluster: EmbeddedCluster, images: Mapping[str, Image]) -> None:
        programs = ":".join(sorted({str(cluster.clients.helm.parent), str(cluster.clients.kubectl.parent)}))
        self._environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "KUBECONFIG": str(cluster.kubeconfig),
        }
        self._settings = " ".join(f"--set {setting}" for setting in image_settings(images))
        self._behind: list[subprocess.Popen[str]] = []
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.said: dict[str, str] = {}

    def type(self, command: str) -> None:
        """Fails with what was said when the command does."""
        typed = re.sub(r"\b8000\b", str(self._port), command)
        if command.startswith("helm install"):
            typed = f"{typed} {self._settings}"
        if command.endswith(" &"):
            self._behind.append(self._started(typed.removesuffix(" &")))
            _until(lambda: _listens(self._port))
        elif command.endswith(" --watch"):
            watching = self._started(typed)
            assert watching.stdout is not None
            self.said[command] = "".join(watching.stdout.readline() for _ in range(2))
            _end(watching)
        else:
            # A shell, as a reader has, so that quotes mean what they mean there.
            done = subprocess.run(
                ("bash", "-c", typed), cwd=ROOT, env=self._environment, capture_output=True, text=True, timeout=WITHIN_S
            )
            assert done.returncode == 0, f"{typed}\n{done.stdout}{done.stderr}"
            self.said[command] = done.stdout

    def leave(self) -> None:
        """End what still runs behind."""
        for process in self._behind:
            _end(process)

    def _started(self, command: str) -> "subprocess.Popen[str]":
        # `exec`, so that there is one process to end.
        line = ("bash", "-c", f"exec {command}")
        return subprocess.Popen(line, cwd=ROOT, env=self._environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def reader(cluster: EmbeddedCluster, built: dict[str, Image]) -> Iterator[Reader]:
    # Helm does not take over a definition that another test applied.
    cluster.kubectl("delete", CRD, "--ignore-not-found", "--wait")
    made = Reader(cluster, built)
    yield made
    made.leave()
    cluster.helm("uninstall", "capstan", "--namespace", SYSTEM, "--wait", "--ignore-not-found")
    cluster.kubectl("delete", CRD, "--ignore-not-found", "--wait")
    cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--wait")


def test_the_path_of_the_readme_leads_to_an_answer(reader: Reader, progress: Progress) -> None:
    typed = [line for line in commands("Run it on a cluster") if line.startswith(("helm", "kubectl", "curl"))]
    assert len(typed) >= 7
    began_s = time.monotonic()
    for command in typed:
        reader.type(command)
        progress(f"readme: {time.monotonic() - began_s:5.1f} s  {command[:80]}")
    told = {command.partition(" ")[0] + " " + command.split()[1]: text for command, text in reader.said.items()}

    assert "looks after InferenceDeployments in all namespaces" in told["helm install"]
    [answer] = [json.loads(text) for command, text in reader.said.items() if command.startswith("curl")]
    assert answer["choices"][0]["message"]["content"]
    headline, row = told["kubectl get"].splitlines()
    assert {"READY", "MODEL", "REPLICAS"} <= set(headline.split())
    assert row.split()[:2] == ["quickstart", "True"]
    assert "Conditions:" in told["kubectl describe"]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_s:g} s"
        time.sleep(0.1)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate(timeout=10)
