"""The base of every value that goes into or comes out of a decision: frozen, and the same after a trip through JSON.

What comes from outside is validated. The surprising idea: what the law itself has computed is not, because validating
it again costs more than computing it; `made` and `changed` take their fields as they are. And values are dataclasses,
not models: a field of a model takes several times as long to be read, and a decision reads thousands.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Final, Self, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticUndefined

_V = TypeVar("_V", bound="Value")
# NaN and the infinities survive JSON as strings, so that a record of bad input replays exactly.
_CONFIG: Final = ConfigDict(extra="forbid", ser_json_inf_nan="strings")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Value:
    """A frozen value. Its subclasses are dataclasses without saying so."""

    field_names: ClassVar[tuple[str, ...]] = ()
    """In the order in which they are declared."""

    made: ClassVar[Callable[..., Self]]
    """A value of fields that are known to be right, down to `float` for a float. Equal to a validated one."""
    _adapter: ClassVar[TypeAdapter[Any]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        made = dataclass(cls, frozen=True, kw_only=True, config=_CONFIG)
        defaults = {
            key: field.get_default(call_default_factory=True) for key, field in made.__pydantic_fields__.items()
        }
        cls.field_names = tuple(field.name for field in fields(made))
        cls.made = _constructor(cls, defaults)
        cls._adapter = TypeAdapter(cls)

    def changed(self, **fields: Any) -> Self:
        """The same value but for these fields, which are known to be right."""
        together, named = self.__dict__ | fields, self.field_names
        assert len(together) == len(named), f"{type(self).__name__} has no {sorted(together.keys() - named)}"
        value = object.__new__(type(self))
        _set_fields(value, together)
        return value

    def to_json(self, exclude: Any = None) -> str:
        """All fields but those of `exclude`, names or nested ones as pydantic takes them."""
        return self.to_json_bytes(exclude).decode()

    def to_json_bytes(self, exclude: Any = None) -> bytes:
        """The same in UTF-8."""
        return self._adapter.dump_json(self, exclude=exclude)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises pydantic's `ValidationError` when the text is not such a value."""
        value: Self = cls._adapter.validate_json(text)
        return value

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """The value that JSON gave as a mapping. Raises as `from_json` does."""
        value: Self = cls._adapter.validate_python(fields)
        return value


# Past the `__setattr__` that a frozen value refuses.
_set_fields: Final = Value.__dict__["__dict__"].__set__


def _constructor(cls: type[_V], defaults: dict[str, Any]) -> Any:
    """`made` of one class. A function that knows its class finds everything in half the time that a method takes."""
    required = frozenset(name for name, default in defaults.items() if default is PydanticUndefined)
    new, set_fields, num_fields = object.__new__, _set_fields, len(defaults)

    def made(**fields: Any) -> _V:
        if len(fields) < num_fields:
            assert required <= fields.keys(), f"{cls.__name__} needs {sorted(required - fields.keys())}"
        together = defaults | fields
        assert len(together) == num_fields, f"{cls.__name__} has no {sorted(together.keys() - defaults.keys())}"
        value = new(cls)
        set_fields(value, together)
        return value

    return staticmethod(made)
