"""The base of every value that goes into or comes out of a decision: frozen, and the same after a trip through JSON."""

from typing import Self

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen value. NaN and the infinities survive JSON as strings, so that a record of bad input replays exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises pydantic's `ValidationError` when the text is not such a value."""
        return cls.model_validate_json(text)
