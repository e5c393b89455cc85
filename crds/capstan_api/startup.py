"""`StartupReport`: how far a pod has come on its way to ready, as its admin port tells at `GET /admin/startup`.

The fetcher answers first, then the engine that takes its place on the same port; both speak this one model, so that
the operator need not know whom it asks. Knows nothing of how a phase is done.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class StartupPhase(StrEnum):
    """What a starting pod is busy with, in the order of the phases."""

    SCHEDULING = "Scheduling"
    """No node yet, or its images are being pulled. Nobody answers in this phase; the cluster tells it."""
    FETCHING = "Fetching"
    """The checkpoint is being downloaded."""
    VERIFYING = "Verifying"
    """The checkpoint's files are being compared with their checksums."""
    LOADING = "Loading"
    """The engine reads the weights into memory."""
    WARMING = "Warming"
    """The engine runs its first steps."""
    READY = "Ready"
    """It serves."""


class StartupReport(BaseModel):
    """Body of `GET /admin/startup`. `total_bytes` is 0 while the amount is not known yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    phase: StartupPhase
    done_bytes: int = Field(default=0, ge=0, description="Bytes of this phase that are done.")
    total_bytes: int = Field(default=0, ge=0, description="Bytes of this phase in all; 0 when not known.")
    message: str = Field(default="", max_length=512, description="One sentence for a person.")
    since: float = Field(ge=0, description="When this phase began, in epoch seconds.")
