"""The base of every value that goes into or comes out of a decision: frozen, and the same after a trip through JSON.

What comes from outside is validated. The surprising idea: what the law itself has computed is not, because validating
it again costs more than computing it; `made` and `changed` take their fields as they are.
"""

from typing import Any, ClassVar, Final, Self, TypeVar

from pydantic import BaseModel, ConfigDict

_V = TypeVar("_V", bound="Value")
_new: Final = object.__new__
# Past the `__setattr__` that a frozen value refuses.
_set_fields, _set_given, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


class Value(BaseModel):
    """A frozen value. NaN and the infinities survive JSON as strings, so that a record of bad input replays exactly."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")
    _defaults: ClassVar[dict[str, Any]] = {}
    """Of all fields, in their order; `...` for one that has none."""
    _required: ClassVar[frozenset[str]] = frozenset()
    _named: ClassVar[set[str]] = set()
    """All fields: those of a value that was made count as given, whether they were or not."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        fields = cls.model_fields.items()
        cls._named = set(cls.model_fields)
        cls._required = frozenset(name for name, field in fields if field.is_required())
        cls._defaults = {
            name: ... if field.is_required() else field.get_default(call_default_factory=True) for name, field in fields
        }

    @classmethod
    def made(cls, **fields: Any) -> Self:
        """A value of fields that are known to be right, down to `float` for a float. Equal to a validated one."""
        if len(fields) < len(cls._defaults):
            assert cls._required <= fields.keys(), f"{cls.__name__} needs {sorted(cls._required - fields.keys())}"
        return _built(cls, cls._defaults | fields)

    def changed(self, **fields: Any) -> Self:
        """The same value but for these fields, which are known to be right."""
        return _built(type(self), self.__dict__ | fields)

    def to_json(self) -> str:
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Raises pydantic's `ValidationError` when the text is not such a value."""
        return cls.model_validate_json(text)


def _built(cls: type[_V], fields: dict[str, Any]) -> _V:
    """What pydantic's own `model_construct` and `model_copy` make, in a fifth of their time."""
    assert len(fields) == len(cls._defaults), f"{cls.__name__} has no {sorted(fields.keys() - cls._defaults.keys())}"
    value = _new(cls)
    _set_fields(value, fields)
    _set_given(value, cls._named)
    _set_extra(value, None)
    _set_private(value, None)
    return value
