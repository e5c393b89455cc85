"""Capstan as a platform engineer has it: the chart installed by Helm, resources applied by kubectl.

Knows no operator and no engine; what it tells of a resource is what `kubectl get` tells.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstan_api import names
from cluster.cluster import Cluster
from cluster.images import Image

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/capstan"
QUICKSTART = ROOT / "crds/examples/quickstart.yaml"
RELEASE = "capstan"
CRD = f"crd/{names.PLURAL}.{names.GROUP}"


@dataclass(frozen=True)
class Installation:
    """One release of the chart in `namespace`."""

    cluster: Cluster
    namespace: str
    images: Mapping[str, Image]

    def install(self, *values: str) -> float:
        """Install, or upgrade to exactly these values, and wait until the operators are ready; returns the seconds."""
        started_s = time.monotonic()
        arguments = [part for value in (*image_settings(self.images), *values) for part in ("--set", value)]
        self.cluster.helm(
            "upgrade", RELEASE, str(CHART), "--install", "--namespace", self.namespace, "--reset-values",
            "--wait", "--timeout", "120s", *arguments,
        )  # fmt: skip
        return time.monotonic() - started_s

    def uninstall(self) -> None:
        """Remove the release; the chart keeps the definition on purpose."""
        self.cluster.helm("uninstall", RELEASE, "--namespace", self.namespace, "--wait")

    def remove_definition(self) -> None:
        """Remove the CustomResourceDefinition, and with it every resource."""
        self.cluster.kubectl("delete", CRD, "--ignore-not-found", "--wait")

    def log(self) -> str:
        """What the operators said."""
        selector = "app.kubernetes.io/component=operator"
        return self.cluster.kubectl("-n", self.namespace, "logs", "-l", selector, "--tail=-1", "--prefix")


def image_settings(images: Mapping[str, Image]) -> list[str]:
    """The values by which the chart installs the images that were built."""
    tags = {"image": images["capstan"], "engine.image": images["capstan-engine"]}
    return [f"{key}.tag={image.name.rpartition(':')[2]}" for key, image in tags.items()]


@dataclass(frozen=True)
class Deployed:
    """One InferenceDeployment, as seen through the API server."""

    cluster: Cluster
    namespace: str
    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self) -> dict[str, Any]:
        resource: dict[str, Any] = json.loads(self.kubectl("get", names.PLURAL, self.name, "--output=json"))
        return resource

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get().get("status", {})
        return found

    def patch(self, **spec: Any) -> None:
        """Merge into the spec."""
        self.kubectl("patch", names.PLURAL, self.name, "--type=merge", f"--patch={json.dumps({'spec': spec})}")

    def pods(self, component: str = "engine") -> list[dict[str, Any]]:
        selector = f"{names.LABEL_DEPLOYMENT}={self.name},{names.LABEL_COMPONENT}={component}"
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", "pods", "-l", selector, "--output=json"))["items"]
        return found

    def url(self) -> str:
        """Where clients on the test machine reach the gateway: the Service's own address."""
        return f"http://{self.kubectl('get', 'service', self.name, '--output=jsonpath={.spec.clusterIP}')}"

    def until(self, holds: Callable[[dict[str, Any]], bool], what: str, within_s: float = 120.0) -> dict[str, Any]:
        """The first status of which `holds` is true; fails with the last one after `within_s`."""
        deadline = time.monotonic() + within_s
        while True:
            status = self.status()
            if holds(status):
                return status
            if time.monotonic() > deadline:
                status.pop("memory", None)
                pods = self.kubectl("get", "pods", "--output=wide")
                raise AssertionError(f"not {what} within {within_s:.0f} s: {json.dumps(status, indent=1)}\n{pods}")
            time.sleep(0.5)

    def until_condition(self, kind: str, status: str = "True", within_s: float = 120.0) -> dict[str, Any]:
        return self.until(lambda seen: _condition(seen, kind).get("status") == status, f"{kind}={status}", within_s)


def _condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next((c for c in status.get("conditions", []) if c["type"] == kind), {})
