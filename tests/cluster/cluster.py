"""What every provider yields: a kubeconfig, what the cluster can do, and the few verbs that the tests need.

It knows kubectl and helm, and nothing of how the cluster came to be.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from cluster.clients import Clients

COMMAND_WITHIN_S = 300.0


class Capability(StrEnum):
    """What a test may need of a cluster."""

    PODS = "pods"  # containers really run
    SERVICES = "services"  # this machine reaches Services and pods by their addresses
    IMAGE_LOADING = "image_loading"  # an archive becomes an image of the nodes
    SIMULATED_NODES = "simulated_nodes"  # pods that are Ready and run nothing, by the thousand
    FAULTS = "faults"  # its own processes may be killed, stopped and started


class CommandFailed(Exception):
    """kubectl, helm or the like said no; the text has the command and all that it said."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers. `kubeconfig` is an administrator's."""

    provider: str
    kubeconfig: Path
    capabilities: frozenset[Capability]
    clients: Clients

    # Made for this run: nobody has to wait until something in it is gone.
    is_temporary: ClassVar[bool] = False

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = COMMAND_WITHIN_S) -> str:
        """Run kubectl against this cluster and return its output; raises CommandFailed."""
        return self._client(self.clients.kubectl, arguments, stdin, timeout_s)

    def helm(self, *arguments: str, timeout_s: float = COMMAND_WITHIN_S) -> str:
        """Run helm against this cluster and return its output; raises CommandFailed."""
        return self._client(self.clients.helm, arguments, None, timeout_s)

    def apply(self, namespace: str, manifest: dict[str, Any], *flags: str) -> str:
        """What `kubectl apply` says; a warning is as bad as a refusal, which is CommandFailed."""
        command = ("-n", namespace, "apply", "--warnings-as-errors", *flags, "-f", "-")
        return self.kubectl(*command, stdin=json.dumps(manifest))

    def answers(self, path: str) -> bool:
        """Whether a GET of an API path succeeds."""
        try:
            self.kubectl("get", "--raw", path, timeout_s=10)
        except CommandFailed:
            return False
        return True

    def load_image(self, archive: Path) -> None:
        """Give every node the images of a docker or OCI archive."""
        raise CommandFailed(f"the {self.provider} cluster cannot load {archive}: it lacks {Capability.IMAGE_LOADING}")

    def share_blob(self, blob: Path, digest: str) -> bool:
        """Let the nodes have a blob of an image from where it lies, without a copy; False where they cannot."""
        return False

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A fresh namespace with a random name; it and everything in it goes at the end."""
        name = f"capstan-test-{secrets.token_hex(4)}"
        self.kubectl("create", "namespace", name)
        try:
            yield name
        finally:
            self.kubectl("delete", "namespace", name, f"--wait={str(not self.is_temporary).lower()}")

    def end(self) -> None:
        """Remove what the provider made; of a cluster that was there before, nothing."""

    def _client(self, program: Path, arguments: tuple[str, ...], stdin: str | None, timeout_s: float) -> str:
        return run_command((str(program), f"--kubeconfig={self.kubeconfig}", *arguments), stdin, timeout_s)


def run_command(command: tuple[str, ...], stdin: str | None = None, timeout_s: float = COMMAND_WITHIN_S) -> str:
    """The command's output; raises CommandFailed when it fails or takes longer than `timeout_s`."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as late:
        raise CommandFailed(f"{' '.join(command)} took longer than {timeout_s:g} s") from late
    if done.returncode != 0:
        raise CommandFailed(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
