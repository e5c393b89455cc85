"""What was imported is no garbage, and is not looked at for any."""

import gc
from collections.abc import Iterator

import pytest

from capstan_operator import heap


@pytest.fixture
def restored() -> Iterator[None]:
    threshold = gc.get_threshold()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("restored")
def test_what_is_there_stays_and_what_is_new_is_still_collected() -> None:
    def of_this_module() -> int:
        return sum(isinstance(each, Cycle) for each in gc.get_objects())

    before, first = gc.get_threshold()[0], Cycle()
    heap.settle()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold()[0] > before
    assert of_this_module() == 0, "what was there is not looked at"
    Cycle()
    assert of_this_module() == 1
    gc.collect()
    assert of_this_module() == 0
    assert first.itself is first


class Cycle:
    def __init__(self) -> None:
        self.itself = self
