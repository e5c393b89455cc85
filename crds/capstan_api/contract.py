"""The base of everything inside the resource: `Contract`, its cross-field rules, its lists and its scalar types.

Knows the habits of Kubernetes' API server and nothing about inference. The surprising idea: a `Rule` carries the same
condition twice, side by side. CEL goes into the CRD and is judged by the API server; Python judges where there is no
API server. One test runs both over the same objects and demands the same answer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

# Past the `__setattr__` that a frozen model refuses. These four slots are all that a validated model is.
_set_fields, _set_given, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)
# A DNS label: what may become part of the name of a pod or a Service.
LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=LABEL, min_length=1, max_length=63)]
# What a Service may be called: a label that begins with a letter (DNS-1035).
SERVICE_LABEL = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"
# A DNS subdomain: the name of an object that somebody else made.
ObjectName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", min_length=1, max_length=253)
]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
# A decimal number as a string: the contract has no floats.
Decimal = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$", max_length=16)]
Percent = Annotated[str, StringConstraints(pattern=r"^([0-9]{1,2}(\.[0-9]{1,4})?|100)$", max_length=8)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
Timestamp = Annotated[str, Field(max_length=40, json_schema_extra={"format": "date-time"})]


@dataclass(frozen=True)
class Rule:
    """One condition that spans several fields, with the sentence that a person gets when it is broken."""

    cel: str
    """In CEL; `self` is the object that declares the rule, with defaults filled in."""
    holds: Callable[[Any], bool]
    """The same in Python, on the validated model."""
    message: str


class Contract(BaseModel):
    """A frozen part of the resource: snake_case in Python, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()
    _named: ClassVar[tuple[str, ...]] = ()
    """All fields, in their order; those of a part that was made count as given."""
    _given: ClassVar[set[str]] = set()

    @classmethod
    def made(cls, **fields: Any) -> Self:
        """A part of all its fields, in their order, that are known to be right. Equal to a validated one."""
        assert tuple(fields) == cls._named, f"{cls.__name__} has the fields {', '.join(cls._named)}"
        part = object.__new__(cls)
        _set_fields(part, fields)
        _set_given(part, cls._given)
        _set_extra(part, None)
        _set_private(part, None)
        return part

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        cls._named, cls._given = tuple(cls.model_fields), set(cls.model_fields)

    @model_validator(mode="after")
    def _obeys_rules(self) -> Self:
        broken = [rule.message for rule in self.rules if not rule.holds(self)]
        if broken:
            raise ValueError("; ".join(broken))
        return self


@dataclass(frozen=True)
class Distinct:
    """Marks a list whose items are told apart by the field `by`, or by themselves when `by` is empty.

    Server-side apply merges such lists item by item, and the API server refuses duplicates; so does this.
    """

    by: str = ""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._refuse_duplicates, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        keys = {"x-kubernetes-list-map-keys": [self.by]} if self.by else {}
        return {**handler(schema), "x-kubernetes-list-type": "map" if self.by else "set", **keys}

    def _refuse_duplicates(self, items: list[Any]) -> list[Any]:
        seen: list[Any] = []
        for item in items:
            key = getattr(item, self.by) if self.by else item
            if key in seen:
                raise ValueError(f"{self.by or 'value'} {str(key)!r} appears twice; each must be unique")
            seen.append(key)
        return items
