"""The base of every value that goes into or comes out of a decision: frozen, and the same after a trip through JSON.

What comes from outside is validated. The surprising idea: what the law itself has computed is not, because validating
it again costs more than computing it; `made` and `changed` take their fields as they are.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict

from capstan_api.filled import filled, set_extra, set_fields, set_given, set_private

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
        """A value of fields that are known to be right, down to `float` for a float. Equal to a validated one."""
        # Each class has a quicker one of its own.
        return cls.model_construct(**fields)

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
    """`made` of one class. A function that knows its class finds everything in half the time that a method takes."""
    fields = cls.model_fields
    required = frozenset(name for name, field in fields.items() if field.is_required())
    # In the order of the fields, which is that of the values too.
    defaults = {name: field.get_default(call_default_factory=True) for name, field in fields.items()}
    new, given, num_fields = object.__new__, set(fields), len(fields)

    def made(**fields: Any) -> _V:
        if len(fields) < num_fields:
            assert required <= fields.keys(), f"{cls.__name__} needs {sorted(required - fields.keys())}"
        together = defaults | fields
        assert len(together) == num_fields, f"{cls.__name__} has no {sorted(together.keys() - given)}"
        value = new(cls)
        set_fields(value, together)
        set_given(value, given)
        set_extra(value, None)
        set_private(value, None)
        return value

    return made
