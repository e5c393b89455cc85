"""Which steps are looked at, how many each stands for, and which are not believed."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from worlds import samples

from capstan_operator.decide.seen.steps import Steps, StepSample, are_believable, chosen, packed, rows

GOOD = StepSample(200, 1.0, 0.02, 64, 4, 900, 2048.0)


def looked_at(
    told: Sequence[Sequence[StepSample]], last_steps: Sequence[int], most: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is chosen of the steps that each engine tells."""
    num_steps = np.array(list(map(len, told)), dtype=np.int64)
    return chosen(rows(packed(chain.from_iterable(told))), num_steps, np.array(last_steps, dtype=float), most)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 80)), max_size=5), st.integers(1, 20))
def test_the_choice_is_new_ordered_bounded_and_stands_for_everything_that_was_not_seen(
    engines: list[tuple[int, int]], most: int
) -> None:
    told = [samples(count, start=10) for count, _ in engines]
    last = [last_step for _, last_step in engines]

    steps, times = looked_at(told, last, most)

    unseen = [[s for s in mine if s.number > seen] for mine, seen in zip(told, last, strict=True)]
    assert times.sum() == pytest.approx(sum(map(len, unseen)))
    for mine in unseen:
        alone, _ = looked_at([mine], [0], most)
        assert len(alone) <= most
        assert (np.diff(alone[:, 0]) > 0).all()
        # The newest is always among them.
        assert [row[0] for row in alone[-1:]] == [s.number for s in mine[-1:]]
    assert steps.tolist() == [row for mine in unseen for row in looked_at([mine], [0], most)[0].tolist()]


def test_an_unbelievable_step_is_left_out_and_the_others_stand_for_it() -> None:
    told = [s._replace(seconds=-1.0) if s.number == 2 else s for s in samples(4)]

    steps, times = looked_at([told, samples(2)], [0, 0], most=4)

    assert steps[:, 0].tolist() == [1, 3, 4, 1, 2]
    assert times.tolist() == [4 / 3, 4 / 3, 4 / 3, 1, 1]


@pytest.mark.parametrize("field", StepSample._fields)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1e300])
def test_no_field_of_a_step_may_be_absurd(field: str, value: float) -> None:
    assert are_believable(np.array([GOOD, GOOD._replace(**{field: value})], dtype=np.float64)).tolist() == [True, False]


def test_steps_survive_json_and_half_a_step_is_refused() -> None:
    adapter = TypeAdapter[bytes](Steps)
    told = packed([GOOD, GOOD._replace(seconds=float("nan"))])
    assert adapter.validate_json(adapter.dump_json(told)) == told
    with pytest.raises(ValidationError, match="rows of 56 bytes"):
        adapter.validate_python(told[:-8])
