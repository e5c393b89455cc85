"""Error budgets: what is left of them, and what of that is to spare."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.spec import Slo
from capstan_operator.decide.ledger import BudgetSlot, Ledger

SLO = Slo.model_validate({"name": "chat", "ttft": {"thresholdMilliseconds": 500}, "objectivePercent": "99"})


def after(total: float, late: float) -> Ledger:
    return Ledger(since=0, budgets={"chat": (BudgetSlot(start=0, total=total, good=total - late),)})


def test_what_is_left_is_what_was_not_late_of_what_may_be() -> None:
    assert after(1000, 4).budget_left(SLO) == pytest.approx(0.6)
    assert after(1000, 20).budget_left(SLO) == pytest.approx(-1.0)
    assert after(0, 0).budget_left(SLO) is None
    assert Ledger().budget_left(SLO) is None


def test_few_requests_that_were_all_in_time_leave_nothing_to_spare() -> None:
    assert Ledger().budget_spare(SLO) == 0
    assert after(100, 0).budget_spare(SLO) < 0.05
    assert after(100_000, 0).budget_spare(SLO) > 0.95


@given(st.floats(0, 1e7), st.floats(0, 1))
def test_no_more_is_to_spare_than_is_left(total: float, share: float) -> None:
    books = after(total, share * total)
    spare, left = books.budget_spare(SLO), books.budget_left(SLO)
    assert spare <= 1
    if left is not None:
        assert min(left, 0.0) - 1e-9 <= spare <= max(left, 0.0) + 1e-9
