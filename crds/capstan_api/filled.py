"""Frozen models of fields that are known to be right: what is computed in every turn of the operator is not validated.

Knows pydantic's own slots, and none of the models. The surprising idea: four slots are all that a validated model is.
"""

from typing import Any, TypeVar

from pydantic import BaseModel

_M = TypeVar("_M", bound=BaseModel)
# Past the `__setattr__` that a frozen model refuses.
set_fields, set_given, set_extra, set_private = (
    BaseModel.__dict__[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


def filled(cls: type[_M], fields: dict[str, Any], given: set[str]) -> _M:
    """What pydantic's own `model_construct` makes, in a fifth of its time. `fields` are all, in their order, and
    those `given` count as told.
    """
    model = object.__new__(cls)
    set_fields(model, fields)
    set_given(model, given)
    set_extra(model, None)
    set_private(model, None)
    return model
