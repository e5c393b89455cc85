"""Values of the law that are made without validation are those that validation gives."""

import json
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import Field, ValidationError

from capstan_operator.decide.scaling.replicas import Peak, ReplicasMemory
from capstan_operator.decide.seen.window import Slot
from capstan_operator.decide.values import Value


class Pair(Value):
    first: float
    second: float = 2.0
    names: dict[str, float] = Field(default_factory=dict)


def test_a_made_value_is_the_validated_one() -> None:
    made, validated = Pair.made(first=1.0), Pair(first=1.0)
    assert made == validated
    assert made.to_json() == validated.to_json()
    assert Pair.from_json(made.to_json()) == made
    assert made.changed(second=3.0) == Pair(first=1.0, second=3.0)


def test_a_changed_value_leaves_the_one_that_it_comes_from() -> None:
    before = ReplicasMemory(wanted=3, peaks=(Peak(at=1.0, replicas=3),))
    after = before.changed(wanted=4)
    assert (before.wanted, after.wanted) == (3, 4)
    assert after.peaks is before.peaks
    assert after.to_json() == ReplicasMemory(wanted=4, peaks=before.peaks).to_json()


def test_fields_of_a_made_value_come_in_their_own_order() -> None:
    assert Slot.field_names == ("start", "end", "classes", "progress")
    assert tuple(json.loads(Slot.made(end=2.0, start=1.0).to_json())) == Slot.field_names
    assert Slot.made(end=2.0, start=1.0).to_json() == Slot(start=1.0, end=2.0).to_json()


def test_a_made_value_stays_frozen() -> None:
    made = Slot.made(start=1.0, end=2.0)
    for field in Slot.field_names:
        with pytest.raises(FrozenInstanceError):
            setattr(made, field, 2.0)


def test_a_field_that_is_missing_or_unknown_is_noticed() -> None:
    with pytest.raises(AssertionError, match="needs \\['first'\\]"):
        Pair.made(second=1.0)
    with pytest.raises(AssertionError, match="has no \\['third'\\]"):
        Pair.made(first=1.0, third=1.0)
    with pytest.raises(AssertionError, match="has no \\['third'\\]"):
        Pair(first=1.0).changed(third=1.0)


def test_what_comes_from_outside_is_validated() -> None:
    for text in ('{"first": "many"}', '{"second": 1}', '{"first": 1, "third": 1}', "{"):
        with pytest.raises(ValidationError):
            Pair.from_json(text)
    many: Any = "many"
    with pytest.raises(ValidationError):
        Pair(first=many)
    with pytest.raises(ValidationError):
        Pair.from_fields({"first": 1.0, "third": 1.0})


def test_numbers_that_json_does_not_know_survive_it() -> None:
    absurd = Pair(first=float("inf"), second=float("nan"))
    again = Pair.from_json(absurd.to_json())
    assert again.first == absurd.first
    assert math.isnan(again.second)


def test_what_is_left_out_is_not_in_the_text() -> None:
    assert Pair(first=1.0).to_json(exclude={"names"}) == '{"first":1.0,"second":2.0}'
