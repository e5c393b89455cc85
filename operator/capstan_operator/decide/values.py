"""The base of every value that goes into or comes out of a decision: frozen, and the same after a trip through JSON.

What comes from outside is validated. The surprising idea: what the law itself has computed is not, because validating
it again costs more than computing it; `made` and `changed` take their fields as they are.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from capstan_api.filled import SETTERS, filled

_V = TypeVar("_V", bound="Value")


class Value(BaseModel):
    """A frozen value. NaN and the infinities survive JSON as strings, so that a record of bad input replays exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
    _named: ClassVar[set[str]] = set()
    """All fields: those of a value that was made count as given, whether they were or not."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._named = set(cls.model_fields)
        cls.made = staticmethod(_constructor(cls))  # type: ignore[method-assign]

    @classmethod
    def made(cls, **fields: Any) -> Self:
        """A value of fields that are known to be right, down to `float` for a float. Equal to a validated one. Raises
        `TypeError` when one is missing or unknown.
        """
        raise NotImplementedError("every class of values has its own")

    def changed(self, **fields: Any) -> Self:
        """The same value but for these fields, which are known to be right."""
        together, named = self.__dict__ | fields, self._named
        assert len(together) == len(named), f"{type(self).__name__} has no {sorted(together.keys() - named)}"
        return filled(type(self), together, named)

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises pydantic's `ValidationError` when the text is not such a value."""
        return cls.model_validate_json(text)


def _constructor(cls: type[_V]) -> Callable[..., _V]:
    """`made` of one class, with its fields as parameters.

    Written out as dataclasses write theirs: a call with keywords then costs a third of what looking at them costs.
    """
    fields = cls.model_fields
    required = [name for name, field in fields.items() if field.is_required()]
    parameters = [*required, *(f"{name}=_default_{name}" for name in fields if name not in required)]
    in_order = ", ".join(f"{name!r}: {name}" for name in fields)
    written = f"""def made({"*, " if parameters else ""}{", ".join(parameters)}):
        value = _new(_cls)
        _set_fields(value, {{{in_order}}})
        _set_given(value, _given)
        _set_extra(value, None)
        _set_private(value, None)
        return value"""
    names = {f"_default_{name}": field.get_default(call_default_factory=True) for name, field in fields.items()}
    names |= SETTERS | {"_new": object.__new__, "_cls": cls, "_given": cls._named}
    exec(written, names)  # noqa: S102
    made: Callable[..., _V] = names["made"]
    made.__qualname__ = f"{cls.__name__}.made"
    return made
