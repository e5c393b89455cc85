"""Batch limits: the knobs that the operator moves while an engine runs, and the envelope they stay inside.

An engine allocates for its `Envelope` once, at start. `BatchLimits` move inside it between two steps: lowering
drains and never preempts, raising never allocates. Limits are leased: when the operator goes silent they return to
the resource's own values (`LimitsState.defaults`).
"""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BatchLimits(BaseModel):
    """What one step may do."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_sequences: int = Field(ge=1, description="Requests that may run at the same time.")
    max_batched_tokens: int = Field(ge=1, description="Tokens that one step may compute, prefill and decode together.")


class Envelope(BaseModel):
    """The range of limits that an engine can serve without a restart."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    min_sequences: int = Field(ge=1, description="Lowest limit on requests that run at the same time.")
    max_sequences: int = Field(ge=1, description="Highest such limit; the engine allocates for it.")
    min_batched_tokens: int = Field(ge=1, description="Lowest limit on tokens of one step.")
    max_batched_tokens: int = Field(ge=1, description="Highest such limit; the engine allocates for it.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_sequences > self.max_sequences:
            raise ValueError("min_sequences must not exceed max_sequences")
        if self.min_batched_tokens > self.max_batched_tokens:
            raise ValueError("min_batched_tokens must not exceed max_batched_tokens")
        if self.max_batched_tokens < self.max_sequences:
            raise ValueError(
                "max_batched_tokens must be at least max_sequences: every running request needs a token a step"
            )
        return self

    @property
    def top(self) -> BatchLimits:
        return BatchLimits(max_sequences=self.max_sequences, max_batched_tokens=self.max_batched_tokens)

    def clamp(self, limits: BatchLimits) -> BatchLimits:
        """The nearest limits inside the envelope."""
        if limits in self:
            return limits
        return BatchLimits(
            max_sequences=min(max(limits.max_sequences, self.min_sequences), self.max_sequences),
            max_batched_tokens=min(max(limits.max_batched_tokens, self.min_batched_tokens), self.max_batched_tokens),
        )

    def __contains__(self, limits: BatchLimits) -> bool:
        return (
            self.min_sequences <= limits.max_sequences <= self.max_sequences
            and self.min_batched_tokens <= limits.max_batched_tokens <= self.max_batched_tokens
        )


class LimitsPatch(BaseModel):
    """Body of `PATCH /admin/limits`. Needs `If-Match` with the version that the change is based on."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_sequences: int | None = Field(default=None, ge=1, description="Unchanged when absent.")
    max_batched_tokens: int | None = Field(default=None, ge=1, description="Unchanged when absent.")
    lease_seconds: int = Field(default=60, ge=1, le=3600, description="Without renewal the defaults return after this.")
    reason: str = Field(default="", max_length=500, description="One sentence for the log and for people.")


class LimitsState(BaseModel):
    """Body of `GET /admin/limits`; `version` is also its ETag."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    limits: BatchLimits = Field(description="In force now.")
    defaults: BatchLimits = Field(description="In force when no lease is.")
    envelope: Envelope
    version: int = Field(description="Rises with every change.")
    lease_remaining_seconds: float | None = Field(description="None while the defaults are in force.")
    reason: str = Field(default="", description="Why they last changed.")
