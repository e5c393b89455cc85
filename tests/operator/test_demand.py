"""What a resource asks of a shared budget: read from its virtual fleets, and silent about what it cannot know."""

from typing import Any

import numpy as np
from worlds import NOW, deployment, observation, replica

from capstan_api.spec import Slo
from capstan_operator.decide.curve import Array, curve, sizes
from capstan_operator.decide.fleets.bank import Bank, Slot
from capstan_operator.decide.scaling.demand import RECENT_S, Demand, Tier, demand
from capstan_operator.decide.scaling.sizing import Sizing, size
from capstan_operator.decide.seen.observation import Allowance, Phase

FLEETS = sizes(8)
CHAT = {"name": "chat", "priority": 5, "ttft": {"thresholdMilliseconds": 500}, "objectivePercent": "90"}
BULK = {"name": "bulk", "priority": -5, "ttft": {"thresholdMilliseconds": 60000}, "objectivePercent": "50"}


def missed_by(needed: float) -> Array:
    """Everything below so many replicas, nothing from there on."""
    made: Array = np.where(FLEETS / needed < 0.99, 1.0, 0.0)
    made[-1] = 0.0
    return made


def slot(age_s: float, *missed: Array, requests: float = 100.0) -> Slot:
    rows = tuple(curve(requests * row) for row in missed)
    return Slot(start=NOW - age_s - 60, end=NOW - age_s, arrived=(requests,) * len(missed), missed=rows)


def asked(*slots: Slot, classes: tuple[dict[str, Any], ...] = (CHAT,), known: bool = True, **changed: Any) -> Demand:
    """The demand of a resource that has 3 replicas and wants 3, between 1 and 8."""
    of = deployment(scaling={"maxReplicas": 8, **changed.pop("scaling", {})})
    slos = [Slo.model_validate(each) for each in classes]
    bank = Bank(classes=tuple(slo.name for slo in slos), since=NOW - 1200, slots=slots)
    sizing: Sizing | None = size(bank, FLEETS, [1 - float(s.objective_percent) / 100 for s in slos], 1.0)
    seen = observation(of, *(replica(of, n) for n in range(3)), *changed.pop("leaving", ()))
    seen = seen.changed(allowance=Allowance(budget="pool", replicas=3, most=6))
    made = demand(
        of.spec.scaling,
        slos,
        seen,
        bank,
        sizing if known else None,
        **{"asked": 3, "wanted": 3, "startup_s": 60.0, "now": NOW, **changed},
    )
    assert made is not None
    return made


def test_where_no_budget_is_shared_nothing_is_asked() -> None:
    of = deployment()
    nothing = {"asked": 1, "wanted": 1, "startup_s": None, "now": NOW}
    assert demand(of.spec.scaling, of.spec.slos, observation(of), Bank(), None, **nothing) is None


def test_a_curve_ends_where_the_objective_is_met() -> None:
    assert asked(slot(0, missed_by(4))).tiers == (Tier(priority=5, shortfall=(1.0, 1.0, 1.0, 1.0, 0.0)),)


def test_a_shortfall_is_a_share_of_the_objective() -> None:
    half = np.full_like(FLEETS, 0.55)
    half[-1] = 0.0
    (tier,) = asked(slot(0, half)).tiers
    # 45 % good of the 90 % that are asked for.
    assert np.allclose(tier.shortfall[1:], 0.5, atol=1e-3)


def test_classes_of_one_priority_count_by_the_worst_and_others_apart() -> None:
    urgent = {**BULK, "name": "urgent", "priority": 5}
    tiers = asked(slot(0, missed_by(2), missed_by(4), missed_by(3)), classes=(CHAT, BULK, urgent)).tiers
    assert [(tier.priority, tier.shortfall.index(0.0)) for tier in tiers] == [(5, 3), (-5, 4)]


def test_earnings_are_read_from_the_last_minutes_and_not_from_the_whole_look_back() -> None:
    busy_before, quiet_now = slot(RECENT_S + 60, missed_by(6), requests=9000), slot(0, missed_by(1))
    assert asked(busy_before, quiet_now).tiers[0].shortfall.index(0.0) == 1


def test_without_requests_no_replica_earns_anything() -> None:
    assert asked(slot(0, missed_by(4), requests=0.0)).tiers[0].shortfall == (0.0,)


def test_from_one_that_cannot_be_seen_nothing_may_be_taken() -> None:
    assert (asked(slot(0, missed_by(4))).floor, asked(slot(0, missed_by(4)), known=False).floor) == (1, 3)
    assert asked(known=False, wanted=9, asked=9).floor == 6


def test_bounds_spares_and_the_whole_budget_are_kept_to() -> None:
    wish = asked(slot(0, missed_by(2)), asked=7, scaling={"minReplicas": 2})
    assert (wish.floor, wish.asked, wish.ceiling) == (2, 6, 6)


def test_those_that_leave_are_counted_apart() -> None:
    of = deployment(scaling={"maxReplicas": 8})
    wish = asked(slot(0, missed_by(2)), leaving=(replica(of, 7, Phase.DRAINING),))
    assert (wish.live, wish.leaving) == (3, 1)
