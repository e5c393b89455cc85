"""What a decision asks the world to do. Every action may be repeated without harm: the second time does nothing.

Knows nothing of how an action is carried out. Ports, hosts, processors and file names belong to the world, which fills
them into the arguments that are given here.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.limits import BatchLimits
from capstan_api.replicas import ReplicaEntry
from capstan_operator.decide.values import Value


class EnsureGateway(Value):
    """Have gateways of this revision: start them, or have those that run take it over."""

    kind: Literal["EnsureGateway"] = "EnsureGateway"
    revision: str
    args: GatewayArgs


class StartReplica(Value):
    kind: Literal["StartReplica"] = "StartReplica"
    id: str
    revision: str
    args: EngineArgs
    cpu_millicores: int


class Route(Value):
    """Make this the table of replicas of these gateways."""

    kind: Literal["Route"] = "Route"
    gateways: tuple[str, ...]
    """Ids of those that have another one."""
    table: tuple[ReplicaEntry, ...]


class SetLimits(Value):
    """Put limits in force for `lease_seconds`; a renewal when they are in force already."""

    kind: Literal["SetLimits"] = "SetLimits"
    id: str
    limits: BatchLimits
    version: int
    """Of the limits that the change is based on."""
    lease_seconds: int
    reason: str
    is_renewal: bool = False


class DrainReplica(Value):
    """Let it finish what it accepted, at most so long, then end it."""

    kind: Literal["DrainReplica"] = "DrainReplica"
    id: str
    timeout_seconds: int


class StopReplica(Value):
    """End it at once: it serves nobody."""

    kind: Literal["StopReplica"] = "StopReplica"
    id: str


Action = Annotated[
    EnsureGateway | StartReplica | Route | SetLimits | DrainReplica | StopReplica, Field(discriminator="kind")
]
