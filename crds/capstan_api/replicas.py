"""What the operator and the gateway say to each other about replicas: bodies of the gateway's admin API.

The operator replaces the whole table with every `PUT /admin/replicas`, so that a lost or repeated message does no harm.
The gateway adds what only it knows: the work outstanding at each replica, also at those that have left the table and
still finish what they were given.
"""

from enum import StrEnum
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ReplicaState(StrEnum):
    """`Ready` takes requests, `Draining` finishes its own and takes no new ones."""

    READY = "Ready"
    DRAINING = "Draining"


class ReplicaEntry(BaseModel):
    """One replica. Another `url` under a known `id` is a new one: a restarted engine shares nothing with the old."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(
        min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the replica."
    )
    url: str = Field(max_length=2048, pattern=r"^https?://[^/?#\s]+$", description="Base URL of the API port, no path.")
    state: ReplicaState = ReplicaState.READY


class ReplicaTableUpdate(BaseModel):
    """Body of `PUT /admin/replicas`. A `version` lower than the table's own is refused with 409."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    replicas: tuple[ReplicaEntry, ...] = Field(max_length=1000, description="The whole table.")
    version: int | None = Field(
        default=None, ge=0, description="Rises with every change; left out, the update always counts."
    )

    @model_validator(mode="after")
    def _unique(self) -> Self:
        ids = [replica.id for replica in self.replicas]
        if len(set(ids)) != len(ids):
            raise ValueError("replicas: ids must be unique")
        return self


class ReplicaStatus(BaseModel):
    """One row of `GET /admin/replicas`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(description="Name of the replica.")
    url: str = Field(description="Base URL of its API port.")
    state: ReplicaState
    in_table: bool = Field(description="False: the operator has removed it, and it finishes what it was given.")
    in_flight: int = Field(description="Requests outstanding.")
    prefill_tokens: int = Field(description="Estimated prompt tokens that it has yet to compute.")


class ReplicaTableStatus(BaseModel):
    """Body of `GET` and `PUT /admin/replicas`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    replicas: tuple[ReplicaStatus, ...] = Field(description="The table, and those that left it with work to finish.")
    version: int | None = Field(description="Of the last update that carried one.")


class GatewayState(BaseModel):
    """Body of `GET /admin/state`. `held` above zero asks the operator for a first replica."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    held: int = Field(description="Requests waiting for a ready replica.")
    in_flight: int = Field(description="Requests given to a replica.")
    open: int = Field(description="Requests accepted and not yet answered in full.")
    draining: bool = Field(description="New requests are refused.")
    uptime_seconds: float = Field(description="Since the process started.")
    routed: dict[str, int] = Field(description="Routing decisions by reason, since the start.")
    table: ReplicaTableStatus
