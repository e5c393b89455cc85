"""Chooses where a cluster comes from: one that is named, kind, or the embedded one; says why, and why not the others.

A cluster that a person named is only ever visited: a random namespace, and nothing else is left behind. The default
context of a person's own kubeconfig is never touched.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from cluster import clients, embedded, preflight
from cluster.cluster import Capability, Cluster, CommandFailed, run_command
from cluster.gobuild import BuildFailed, Progress
from cluster.run import StartFailed

KUBECONFIG_VARIABLE = "CAPSTAN_TEST_KUBECONFIG"
PROVIDER_VARIABLE = "CAPSTAN_TEST_PROVIDER"
KIND_READY_WITHIN_S = 300


class Unavailable(Exception):
    """This provider, or none, can yield a cluster here; the text says what is missing."""


@dataclass(frozen=True)
class KindCluster(Cluster):
    """A cluster in Docker containers, made for this run."""

    is_temporary: ClassVar[bool] = True

    name: str

    def load_image(self, archive: Path) -> None:
        run_command(("kind", "load", "image-archive", str(archive), "--name", self.name))

    def end(self) -> None:
        run_command(("kind", "delete", "cluster", "--name", self.name))
        shutil.rmtree(self.kubeconfig.parent)


def cluster(progress: Progress, *, owned: bool = True) -> Cluster:
    """The first provider that works; $CAPSTAN_TEST_PROVIDER allows only one. Raises Unavailable with all reasons."""
    providers: dict[str, Callable[[], Cluster]] = {
        "kubeconfig": lambda: _named(progress),
        "kind": lambda: _kind(progress),
        "embedded": lambda: _embedded(progress, owned),
    }
    wanted = os.environ.get(PROVIDER_VARIABLE)
    if wanted is not None and wanted not in providers:
        raise Unavailable(f"{PROVIDER_VARIABLE} is {wanted!r}: it must be one of {', '.join(providers)}")
    reasons = []
    for name, provide in providers.items():
        if wanted not in (None, name):
            continue
        try:
            found = provide()
        except (Unavailable, CommandFailed, BuildFailed, StartFailed) as reason:
            # A cluster that was asked for by name must not be replaced by another one in silence.
            if name == "kubeconfig" and KUBECONFIG_VARIABLE in os.environ:
                raise Unavailable(str(reason)) from reason
            reasons.append(f"{name}: {reason}")
            progress(f"no cluster from {reasons[-1]}")
        else:
            progress(f"cluster from {name}, which has {', '.join(sorted(found.capabilities))}")
            return found
    raise Unavailable("; ".join(reasons))


def control_plane(progress: Progress, *, owned: bool = True) -> embedded.EmbeddedCluster:
    """A control plane with simulated nodes, always the embedded one; raises Unavailable."""
    if lacking := preflight.for_simulated_nodes():
        raise Unavailable("; ".join(lacking))
    return embedded.start(progress, owned=owned, simulate=True)


def _named(progress: Progress) -> Cluster:
    path = os.environ.get(KUBECONFIG_VARIABLE)
    if not path:
        raise Unavailable(f"{KUBECONFIG_VARIABLE} is not set")
    if not Path(path).is_file():
        raise Unavailable(f"{KUBECONFIG_VARIABLE} names {path}, which is no file")
    named = Cluster("kubeconfig", Path(path), frozenset({Capability.PODS}), clients.find(progress))
    named.kubectl("get", "--raw", "/readyz", timeout_s=30)
    return named


def _kind(progress: Progress) -> Cluster:
    for program in ("docker", "kind"):
        if shutil.which(program) is None:
            raise Unavailable(f"no `{program}` on the PATH")
    run_command(("docker", "info"), timeout_s=20)
    name = f"capstan-{secrets.token_hex(3)}"
    kubeconfig = Path(tempfile.mkdtemp(prefix=f"{name}-"), "kubeconfig")
    create = ("kind", "create", "cluster", "--name", name, "--kubeconfig", str(kubeconfig))
    progress("creating a kind cluster, whose node image may have to be pulled")
    made = KindCluster(
        "kind", kubeconfig, frozenset({Capability.PODS, Capability.IMAGE_LOADING}), clients.find(progress), name
    )
    try:
        run_command((*create, "--wait", f"{KIND_READY_WITHIN_S}s"), timeout_s=2 * KIND_READY_WITHIN_S)
    except BaseException:
        made.end()
        raise
    return made


def _embedded(progress: Progress, owned: bool) -> Cluster:
    if lacking := preflight.for_real_node():
        raise Unavailable("; ".join(lacking))
    return embedded.start(progress, owned=owned)
