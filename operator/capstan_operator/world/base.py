"""The seam between the control loop and the place where processes run.

A world starts and ends processes and knows where they listen; it decides nothing, and it does not speak to them about
limits or routes: that is the same everywhere and done by `observe` and `apply`. Every method that changes something may
be called again with the same arguments without harm, returns without waiting for the outcome (which the next look at
the world shows), and raises `WorldError` when it cannot even begin. `Gone` ends the loop: the resource was deleted.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.status import DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.seen.observation import Phase


@dataclass(frozen=True)
class ReplicaFacts:
    """One engine as the world knows it. Times are epoch seconds; the addresses are None until it listens.

    `message` says why it is pending or has failed, in the engine's own last words where there are any. An engine that
    refuses its configuration for good begins them with `infeasible:`, a fetcher that cannot get a model with `source:`.
    """

    id: str
    revision: str
    phase: Phase
    created_at: float
    ready_at: float | None = None
    restarts: int = 0
    url: str | None = None
    admin_url: str | None = None
    message: str = ""


@dataclass(frozen=True)
class GatewayFacts:
    """One gateway as the world knows it. `id` tells it from the others and from itself before a restart."""

    id: str
    revision: str
    phase: Phase
    restarts: int = 0
    url: str | None = None
    admin_url: str | None = None
    message: str = ""


class World(Protocol):
    """Where one InferenceDeployment runs."""

    @property
    def admin_token(self) -> str:
        """Bearer token of every admin port in this world."""

    @property
    def wake(self) -> asyncio.Event:
        """Set when a process changed its phase, so that the loop need not wait for its timer."""

    @property
    def endpoint(self) -> str | None:
        """Where clients reach the gateways; None until that is known."""

    def model_directory(self, uri: str) -> Path:
        """Where an engine finds the checkpoint of `spec.model.source.uri`. Raises `ModelNotFound` with the remedy."""

    async def replicas(self) -> Sequence[ReplicaFacts]:
        """All replicas that exist, leaving ones included."""

    async def gateways(self) -> Sequence[GatewayFacts]:
        """All gateways that exist, leaving ones included."""

    async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
        """Have what stands around the processes, as `deployment` says. Called in every turn before its actions.

        Whatever was kept for a revision that is not among `revisions` and that no replica has may go. `wanted` is the
        number of replicas that was decided.
        """

    async def start_replica(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        """Have a replica of this id. The world fills in host, ports, processors and the step log's place.

        The rest of what a replica is made of (memory, scheduling, source) comes from the deployment that was given to
        `prepare`, or, for a revision that ran before, from what the world kept of it.
        """

    async def drain_replica(self, replica_id: str, timeout_s: float) -> None:
        """Let it finish what it accepted, then end it; end it anyway after the timeout."""

    async def stop_replica(self, replica_id: str) -> None:
        """End it now."""

    async def ensure_gateway(self, revision: str, args: GatewayArgs) -> None:
        """Have gateways of this revision at the endpoint that clients know.

        One that runs takes the arguments over while it serves, and has the revision once it has accepted them; one
        that cannot be told yet keeps its old revision, and is told when this is asked for again.
        """

    async def announce(self, decision: DecisionStatus) -> None:
        """Tell people of a moment at which something changed. May be lost."""

    async def write_status(self, status: InferenceDeploymentStatus) -> None:
        """Publish the status."""

    async def close(self, timeout_s: float | None = None) -> None:
        """End everything that this world has started, accepted requests first when there is a timeout to do so."""
