"""Dividing accelerators: nobody gets what is not there, everybody gets what it must have, and the rest goes where it
earns most.
"""

from collections.abc import Mapping
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.decide.scaling.budget import Claim, divide
from capstan_operator.decide.scaling.demand import Demand, Tier


def fleet(
    *shortfall: float,
    floor: int = 0,
    ceiling: int = 20,
    needed: int | None = None,
    asked: int | None = None,
    wanted: int = 0,
    live: int | None = None,
    leaving: int = 0,
    priority: int = 0,
    each: int = 1,
) -> Claim:
    """A resource whose objective is met with as many replicas as there are shortfalls but one."""
    enough = max(len(shortfall) - 1, floor)
    demand = Demand(
        floor=floor,
        ceiling=ceiling,
        needed=min(enough, enough if asked is None else asked) if needed is None else needed,
        asked=enough if asked is None else asked,
        wanted=wanted,
        live=wanted if live is None else live,
        leaving=leaving,
        tiers=(Tier(priority=priority, shortfall=shortfall),) if shortfall else (),
    )
    return Claim(demand, each)


def needs(replicas: int) -> tuple[float, ...]:
    """Nearly all requests are late until there are enough replicas."""
    return (1.0, *(1 - 0.02 * n for n in range(1, replicas)), 0.0)


def test_where_there_is_enough_everybody_gets_what_it_asks_for_and_room_to_grow() -> None:
    shares = divide(12, {"a": fleet(*needs(3)), "b": fleet(*needs(5))})
    assert shares["a"] >= 3
    assert shares["b"] >= 5
    assert sum(shares.values()) == 12


def test_what_is_needed_now_goes_before_what_was_needed_once() -> None:
    cautious, pressed = fleet(*needs(1), wanted=3, asked=4), fleet(*needs(3), wanted=3, needed=4, asked=6)
    assert divide(6, {"cautious": cautious, "pressed": pressed}) == {"cautious": 2, "pressed": 3}
    leaving = fleet(*needs(1), wanted=2, asked=4)
    assert divide(6, {"cautious": leaving, "pressed": pressed}) == {"cautious": 2, "pressed": 4}


def test_an_accelerator_goes_where_it_earns_most() -> None:
    steep, flat = (1.0, 0.5, 0.0), (1.0, 0.9, 0.8, 0.7)
    assert divide(3, {"flat": fleet(*flat), "steep": fleet(*steep)}) == {"steep": 2, "flat": 1}


def test_a_fleet_that_earns_nothing_until_it_is_whole_is_not_begun_in_vain() -> None:
    shares = divide(6, {"large": fleet(*needs(9)), "small": fleet(*needs(5))})
    assert shares["small"] == 5


def test_a_large_step_is_taken_whole_although_its_first_replicas_earn_little() -> None:
    shares = divide(10, {"large": fleet(*needs(8)), "tail": fleet(0.1, 0.06, 0.03, 0.01, 0.0)})
    assert shares["large"] == 8


def test_a_replica_that_takes_more_accelerators_must_earn_more() -> None:
    curve = (1.0, 0.6, 0.3, 0.1, 0.0)
    shares = divide(4, {"one": fleet(*curve), "four": fleet(*curve, each=4)})
    assert shares == {"four": 0, "one": 4}


def test_what_must_be_there_goes_before_what_would_earn_more() -> None:
    shares = divide(5, {"kept": fleet(floor=3), "busy": fleet(*needs(5))})
    assert shares == {"busy": 2, "kept": 3}


def test_what_must_be_there_and_is_too_much_for_all_is_divided_evenly() -> None:
    assert divide(7, {"a": fleet(floor=8), "b": fleet(floor=3), "c": fleet(floor=1)}) == {"a": 3, "b": 3, "c": 1}


def test_classes_of_higher_priority_go_first_however_much_others_would_earn() -> None:
    chat, bulk = fleet(1.0, 0.9, 0.8, 0.7, 0.0, priority=10), fleet(*needs(2), priority=-10)
    assert divide(4, {"bulk": bulk, "chat": chat}) == {"bulk": 0, "chat": 4}
    assert divide(6, {"bulk": bulk, "chat": chat}) == {"bulk": 2, "chat": 4}


def test_spares_and_backlogs_come_after_everybodys_attainment() -> None:
    spared = fleet(*needs(2), asked=6)
    assert divide(7, {"spared": spared, "busy": fleet(*needs(4))}) == {"busy": 4, "spared": 3}


def test_who_shall_grow_waits_until_it_is_really_given_up() -> None:
    falling, rising = fleet(*needs(2), wanted=6), fleet(*needs(6), wanted=2)
    assert divide(8, {"falling": falling, "rising": rising}) == {"falling": 2, "rising": 2}
    draining = fleet(*needs(2), wanted=2, leaving=3)
    assert divide(8, {"falling": draining, "rising": rising}) == {"falling": 2, "rising": 3}
    gone = fleet(*needs(2), wanted=2)
    assert divide(8, {"falling": gone, "rising": rising}) == {"falling": 2, "rising": 6}


def test_replicas_that_a_rollout_adds_are_nobody_elses() -> None:
    rolling, rising = fleet(*needs(3), wanted=3, live=4), fleet(*needs(5), wanted=2)
    assert divide(7, {"rising": rising, "rolling": rolling})["rising"] == 3


def test_a_replica_does_not_change_hands_for_less_than_the_move_costs() -> None:
    def curves(gain: float) -> Mapping[str, Claim]:
        return {"has": fleet(1.0, 0.3, 0.1, 0.0, wanted=2), "wants": fleet(1.0, 0.3, 0.1 - gain, 0.0, wanted=1)}

    assert divide(3, curves(0.03)) == {"has": 2, "wants": 1}
    assert divide(3, curves(0.08)) == {"has": 1, "wants": 1}


def test_of_one_that_a_person_steers_no_replica_is_taken_and_none_is_given() -> None:
    shares = divide(6, {"manual": Claim(Demand.standing(4, 4)), "auto": fleet(*needs(5), floor=1, wanted=1)})
    assert shares == {"auto": 2, "manual": 4}


def test_more_than_there_is_set_by_a_person_ends_nobodys_least() -> None:
    shares = divide(6, {"manual": Claim(Demand.standing(40, 6)), "auto": fleet(*needs(5), floor=2, wanted=2)})
    assert shares["auto"] == 2


SHORTFALLS = st.lists(st.floats(0, 1), min_size=1, max_size=6).map(lambda v: tuple(sorted(v, reverse=True)))
CLAIMS = st.dictionaries(
    st.sampled_from("abcde"),
    st.builds(
        lambda curve, floor, wanted, leaving, priority, each: fleet(
            *curve, floor=floor, wanted=wanted, leaving=leaving, priority=priority, each=each
        ),
        SHORTFALLS,
        st.integers(0, 2),
        st.integers(0, 6),
        st.integers(0, 2),
        st.sampled_from([0, 5]),
        st.integers(1, 3),
    ),
    min_size=1,
)


@given(st.integers(0, 24), CLAIMS)
def test_the_sum_never_grows_beyond_what_there_is(total: int, claims: dict[str, Claim]) -> None:
    shares = divide(total, claims)
    after = sum(c.accelerators * (max(shares[name], c.demand.wanted) + c.demand.leaving) for name, c in claims.items())
    before = sum(claim.held for claim in claims.values())
    assert after <= max(total, before)
    assert all(0 <= shares[name] <= claim.demand.ceiling for name, claim in claims.items())


@given(st.integers(0, 24), CLAIMS)
def test_what_must_be_there_is_there_where_it_fits(total: int, claims: dict[str, Claim]) -> None:
    if sum(c.accelerators * c.demand.floor for c in claims.values()) > total:
        return
    settled = follow(total, claims)
    assert all(settled[name] >= claim.demand.floor for name, claim in claims.items())


def follow(total: int, claims: Mapping[str, Claim]) -> dict[str, int]:
    """The shares once everybody has done as it was told and nothing leaves any more."""
    shares = divide(total, claims)
    for _ in range(6):
        shares = divide(total, claims)
        claims = {name: _obeyed(claim, shares[name]) for name, claim in claims.items()}
    return shares


def _obeyed(claim: Claim, share: int) -> Claim:
    wanted = min(share, max(claim.demand.asked, claim.demand.floor))
    return Claim(claim.demand.changed(wanted=wanted, live=wanted, leaving=0), claim.accelerators)


@given(st.integers(0, 24), CLAIMS)
def test_in_an_unchanged_world_a_division_comes_to_rest(total: int, claims: dict[str, Claim]) -> None:
    for _ in range(6):
        shares = divide(total, claims)
        claims = {name: _obeyed(claim, shares[name]) for name, claim in claims.items()}
    at_rest = {name: claim.demand.wanted for name, claim in claims.items()}
    shares = divide(total, claims)
    assert {name: _obeyed(claim, shares[name]).demand.wanted for name, claim in claims.items()} == at_rest


CONVEX = st.lists(st.floats(0.01, 0.5), min_size=1, max_size=5).map(
    lambda drops: tuple(
        max(0.0, 1 - sum(sorted(drops, reverse=True)[:n]) / max(1.0, sum(drops))) for n in range(len(drops) + 1)
    )
)


@given(st.integers(0, 10), st.lists(CONVEX, min_size=1, max_size=3))
@settings(max_examples=60)
def test_no_other_division_of_diminishing_earnings_earns_more(total: int, curves: list[tuple[float, ...]]) -> None:
    claims = {str(n): fleet(*curve) for n, curve in enumerate(curves)}

    def missed(shares: Mapping[str, int]) -> float:
        return sum(curve[min(shares[str(n)], len(curve) - 1)] for n, curve in enumerate(curves))

    best = min(
        missed(dict(zip(claims, numbers, strict=True)))
        for numbers in product(*(range(len(curve)) for curve in curves))
        if sum(numbers) <= total
    )
    assert missed(divide(total, claims)) == pytest.approx(best)


@given(CLAIMS)
def test_the_order_of_the_claims_says_nothing(claims: dict[str, Claim]) -> None:
    assert divide(9, claims) == divide(9, dict(reversed(claims.items())))
