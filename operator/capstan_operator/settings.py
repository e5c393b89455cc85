"""How the operator itself behaves, whatever it operates: intervals, bounds and patience.

One of the three doors for configuration (the resource and `EngineArgs` are the others). The defaults are meant for
every world; tests shorten them.
"""

from pydantic import BaseModel, ConfigDict, Field


class OperatorSettings(BaseModel):
    """Validated once, then frozen. All times are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn_interval_s: float = Field(default=1.0, gt=0, description="Time between two turns when nothing wakes the loop.")
    longest_retry_s: float = Field(default=30.0, gt=0, description="Bound of the back-off after turns that failed.")
    progress_interval_s: float = Field(
        default=2.0, ge=0, description="A status that only tells how far a decision has come is written no more often."
    )
    status_interval_s: float = Field(
        default=30.0, ge=0, description="A status that differs only in its figures is written no more often than this."
    )
    books_interval_s: float = Field(
        default=3600.0, ge=0, description="One that differs only in what grows by itself, such as usage, than this."
    )

    http_timeout_s: float = Field(default=2.0, gt=0, description="For one scrape or admin call, all of it.")
    max_page_bytes: int = Field(default=4 << 20, ge=1024, description="A larger answer is not read to its end.")
    max_series: int = Field(default=20_000, ge=1, description="A metrics page with more lines is refused.")
    max_step_samples: int = Field(default=512, ge=1, le=4096, description="Step samples taken from an engine a turn.")

    probe_interval_s: float = Field(default=0.25, gt=0, description="Between readiness probes of a starting process.")
    ready_probe_interval_s: float = Field(default=1.0, gt=0, description="Between probes of a process that is ready.")
    liveness_timeout_s: float = Field(
        default=20.0, gt=0, description="A process whose health has not been confirmed for so long is killed."
    )
    first_restart_s: float = Field(default=1.0, ge=0, description="Wait before the first restart; it doubles.")
    longest_restart_s: float = Field(default=60.0, ge=0, description="Bound of that wait.")
    stable_s: float = Field(
        default=60.0, ge=0, description="A process that lived so long starts again at the first wait."
    )
    kill_after_s: float = Field(
        default=3.0, ge=0, description="From SIGTERM to SIGKILL beyond what a drain is allowed."
    )
