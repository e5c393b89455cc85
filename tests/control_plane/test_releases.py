"""The chart's whole life in a real API server: installed, upgraded, rolled back, uninstalled, installed again.

Pods run on simulated nodes, which is enough for all that Helm does; `helm test`, which needs an operator that runs, is
tried in `tests/cluster`.
"""

import base64
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from capstan_api import names
from cluster.cluster import CommandFailed
from cluster.embedded import EmbeddedCluster

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm/capstan"
CRD = f"crd/{names.PLURAL}.{names.GROUP}"
EVERYTHING = (
    "deployments,configmaps,secrets,services,serviceaccounts,poddisruptionbudgets,networkpolicies,roles,rolebindings"
)


@dataclass
class Release:
    """One release in a namespace of its own."""

    plane: EmbeddedCluster
    namespace: str
    name: str

    def helm(self, verb: str, *arguments: str) -> str:
        return self.plane.helm(verb, self.name, *arguments, "--namespace", self.namespace)

    def install(self, *values: str) -> None:
        """Install or upgrade to exactly these values."""
        settings = [part for value in values for part in ("--set", value)]
        command = ("upgrade", self.name, str(CHART), "--install", "--reset-values", "--wait", "--timeout", "90s")
        self.plane.helm(*command, *settings, "--namespace", self.namespace)

    def get(self, kind: str, name: str = "") -> dict[str, Any]:
        text = self.plane.kubectl("-n", self.namespace, "get", kind, *([name] if name else []), "--output=json")
        document: dict[str, Any] = json.loads(text)
        return document

    def key(self) -> bytes:
        return base64.b64decode(self.get("secret", f"{self.name}-key")["data"]["key"])

    def may(self, who: str, verb: str, resource: str, namespace: str = "") -> bool:
        """Whether somebody has a right, in the release's namespace if no other is named."""
        kind, _, subresource = resource.partition("/")
        ask = ("auth", "can-i", verb, kind, f"--subresource={subresource}")
        try:
            self.plane.kubectl(*ask, "--namespace", namespace or self.namespace, "--as", who)
        except CommandFailed as answer:
            # kubectl says no with the status of a failure.
            if "\nno\n" in str(answer):
                return False
            raise
        return True

    def is_verbose(self) -> bool:
        """Whether the operator is told to log at DEBUG."""
        return "logLevel: DEBUG" in self.get("configmap", self.name)["data"]["operator.yaml"]

    def versions(self) -> dict[str, str]:
        """A mark of every object of the release that changes with every write that changes what is wanted."""
        items = self.get(EVERYTHING)["items"]
        found = [item for item in items if item["metadata"].get("labels", {}).get("helm.sh/chart")]
        # Where there is a generation, there is a status that others write.
        return {
            f"{item['kind']}/{item['metadata']['name']}": str(
                item["metadata"].get("generation", item["metadata"]["resourceVersion"])
            )
            for item in found
        }


@pytest.fixture
def release(control_plane: EmbeddedCluster) -> Iterator[Release]:
    """A name that no other test has; what the chart keeps on purpose is removed at the end."""
    # Another test may have left a definition that belongs to no release; Helm would not take it over unasked.
    control_plane.kubectl("delete", CRD, "--ignore-not-found", "--wait")
    with control_plane.namespace() as namespace:
        # The name holds the chart's, so that objects are called like the release.
        made = Release(control_plane, namespace, f"capstan-{secrets.token_hex(3)}")
        yield made
        if made.name in control_plane.helm("list", "--short", "--namespace", namespace).split():
            made.helm("uninstall", "--wait")
        control_plane.kubectl("delete", CRD, "--ignore-not-found", "--wait")


def test_an_upgrade_to_the_same_changes_nothing_and_a_rollback_brings_back_what_was(release: Release) -> None:
    release.install()
    key, installed = release.key(), release.versions()
    assert len(key) >= 32
    assert len(installed) >= 9
    release.install()
    assert release.versions() == installed

    release.install("config.logLevel=DEBUG")
    assert release.is_verbose()
    # The operators, their configuration, and nothing else.
    assert {name for name, version in release.versions().items() if installed[name] != version} == {
        f"Deployment/{release.name}",
        f"ConfigMap/{release.name}",
    }
    release.helm("rollback", "1", "--wait", "--timeout", "90s")
    assert not release.is_verbose()
    assert release.key() == key


def test_uninstalling_leaves_what_serves_and_the_next_installation_takes_it_over(release: Release) -> None:
    release.install()
    key = release.key()
    quickstart = str(ROOT / "crds/examples/quickstart.yaml")
    release.plane.kubectl("-n", release.namespace, "apply", "-f", quickstart)
    uid = release.get(names.PLURAL, "quickstart")["metadata"]["uid"]

    release.helm("uninstall", "--wait")
    assert release.versions().keys() == {f"Secret/{release.name}-key"}
    release.plane.kubectl("get", CRD)

    release.install()
    assert release.key() == key
    assert release.get(names.PLURAL, "quickstart")["metadata"]["uid"] == uid


def test_what_was_rendered_without_the_cluster_cannot_replace_the_key(release: Release) -> None:
    release.install()
    key = release.key()
    rendered = release.helm("template", str(CHART), "--show-only", "templates/key.yaml")
    with pytest.raises(CommandFailed, match="immutable"):
        release.plane.kubectl(
            "-n", release.namespace, "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=rendered
        )
    assert release.key() == key


def test_the_operators_account_has_its_rights_in_its_namespaces_and_no_others(release: Release) -> None:
    account = f"system:serviceaccount:{release.namespace}:{release.name}"
    with release.plane.namespace() as watched:
        release.install(f"watchNamespaces={{{watched}}}")
        assert release.may(account, "watch", names.PLURAL, watched)
        assert release.may(account, "create", "pods", watched)
        assert release.may(account, "update", "leases.coordination.k8s.io")
        assert not release.may(account, "list", "secrets", watched)
        assert not release.may(account, "get", "secrets", watched)
        assert not release.may(account, "watch", names.PLURAL)
        assert not release.may(account, "create", "pods", "default")
        # Without the list it looks after all namespaces.
        release.install()
        assert release.may(account, "create", "pods", "default")
        assert not release.may(account, "get", "secrets", "default")


def test_people_with_the_clusters_own_roles_may_use_the_resource(release: Release) -> None:
    release.install()
    for role in ("view", "edit"):
        release.plane.kubectl(
            "-n", release.namespace, "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er"
        )
    assert release.may("viewer", "list", names.PLURAL)
    assert not release.may("viewer", "create", names.PLURAL)
    assert release.may("editer", "list", names.PLURAL)
    assert release.may("editer", "create", names.PLURAL)
    assert not release.may("editer", "patch", f"{names.PLURAL}/status")


def test_pods_are_admitted_where_pod_security_restricted_is_enforced(release: Release) -> None:
    enforce = "pod-security.kubernetes.io/enforce=restricted"
    release.plane.kubectl("label", "namespace", release.namespace, enforce)
    release.install()
    pods = release.get("pods")["items"]
    assert len(pods) == 2


def test_values_that_are_not_understood_are_refused_before_anything_is_installed(release: Release) -> None:
    with pytest.raises(CommandFailed, match="additional properties 'replica' not allowed"):
        release.install("replica=2")
    assert release.versions() == {}
