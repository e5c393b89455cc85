"""Values of the law that are made without validation are those that validation gives."""

import pytest
from pydantic import Field

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
    assert made.model_copy(update={"second": 3.0}) == validated.changed(second=3.0)


def test_a_changed_value_leaves_the_one_that_it_comes_from() -> None:
    before = ReplicasMemory(wanted=3, peaks=(Peak(at=1.0, replicas=3),))
    after = before.changed(wanted=4)
    assert (before.wanted, after.wanted) == (3, 4)
    assert after.peaks is before.peaks
    assert after.to_json() == before.model_copy(update={"wanted": 4}).to_json()


def test_fields_of_a_made_value_come_in_their_own_order() -> None:
    assert list(Slot.made(end=2.0, start=1.0).model_dump()) == list(Slot.model_fields)
    assert Slot.made(end=2.0, start=1.0).to_json() == Slot(start=1.0, end=2.0).to_json()


def test_a_made_value_stays_frozen() -> None:
    made = Slot.made(start=1.0, end=2.0)
    for field in Slot.model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(made, field, 2.0)


def test_a_field_that_is_missing_or_unknown_is_noticed() -> None:
    with pytest.raises(AssertionError, match="needs \\['first'\\]"):
        Pair.made(second=1.0)
    with pytest.raises(AssertionError, match="has no \\['third'\\]"):
        Pair.made(first=1.0, third=1.0)
    with pytest.raises(AssertionError, match="has no \\['third'\\]"):
        Pair(first=1.0).changed(third=1.0)
