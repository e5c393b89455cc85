"""The pure heart: bounded load, affinity, determinism."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_gateway.routing import (
    BLOCK_BYTES,
    LOAD_SLACK,
    MAX_BLOCKS,
    TOKENS_PER_REQUEST,
    Candidate,
    PrefixIndex,
    Reason,
    choose,
    load_bound,
    prefix_keys,
)

NOW = 100.0

candidates = st.lists(
    st.builds(
        Candidate,
        id=st.text("abcdefgh0123-", min_size=1, max_size=8),
        num_requests=st.integers(0, 50),
        prefill_tokens=st.integers(0, 50_000),
        matched_blocks=st.integers(0, 8),
        aside_until=st.sampled_from([0.0, NOW, NOW + 1]),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda c: c.id,
)


def present(given: list[Candidate]) -> list[Candidate]:
    return [c for c in given if c.aside_until <= NOW] or given


@given(candidates, st.binary(max_size=80))
def test_the_chosen_replica_is_never_over_the_load_bound(given, key):
    choice = choose(given, key, NOW)
    chosen = next(c for c in given if c.id == choice.id)
    assert chosen.load <= load_bound([c.load for c in present(given)])


@given(candidates, st.binary(max_size=80))
def test_no_eligible_replica_knows_more_of_the_prompt_or_is_less_loaded_at_equal_match(given, key):
    choice = choose(given, key, NOW)
    chosen = next(c for c in given if c.id == choice.id)
    bound = load_bound([c.load for c in present(given)])
    for other in present(given):
        if other.load <= bound:
            assert (other.matched_blocks, -other.load) <= (chosen.matched_blocks, -chosen.load)


@given(candidates, st.binary(max_size=80), st.randoms())
def test_the_order_of_the_candidates_does_not_matter(given, key, random):
    shuffled = random.sample(given, len(given))
    assert choose(given, key, NOW) == choose(shuffled, key, NOW)


@given(candidates)
def test_a_replica_put_aside_is_taken_only_when_all_are(given):
    choice = choose(given, b"", NOW)
    assert choice.id in {c.id for c in present(given)}


def test_without_candidates_there_is_no_choice():
    assert choose([], b"", NOW) is None


@pytest.mark.parametrize(
    ("requests_a", "match_a", "expected", "reason"),
    [
        (0, 2, "a", Reason.PREFIX),
        (4, 2, "a", Reason.PREFIX),
        (5, 2, "b", Reason.PREFIX_OVERLOADED),
        (1, 0, "b", Reason.LEAST_LOADED),
    ],
)
def test_affinity_yields_when_the_replica_is_loaded_beyond_the_margin(requests_a, match_a, expected, reason):
    choice = choose([Candidate("a", requests_a, 0, match_a), Candidate("b", 0, 0)], b"k", NOW)
    assert (choice.id, choice.reason) == (expected, reason)


def test_with_much_load_the_margin_is_a_quarter_of_the_mean():
    busy = [Candidate("a", 124, 0, 3), Candidate("b", 76, 0)]
    assert choose(busy, b"k", NOW).id == "a"
    assert choose([replace(busy[0], num_requests=126), replace(busy[1], num_requests=74)], b"k", NOW).id == "b"


def test_prompt_tokens_that_wait_for_prefill_are_load():
    choice = choose([Candidate("a", 1, 10 * TOKENS_PER_REQUEST), Candidate("b", 2, 0)], b"k", NOW)
    assert choice.id == "b"


def test_ties_spread_over_replicas_by_the_prompt_and_stay_when_another_replica_comes():
    two = [Candidate("a", 0, 0), Candidate("b", 0, 0)]
    keys = [bytes([i]) for i in range(200)]
    before = {key: choose(two, key, NOW).id for key in keys}
    assert 60 < sum(chosen == "a" for chosen in before.values()) < 140
    after = {key: choose([*two, Candidate("c", 0, 0)], key, NOW).id for key in keys}
    assert all(after[key] in (before[key], "c") for key in keys)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=20))
def test_the_least_loaded_replica_is_always_eligible(loads):
    assert min(loads) + LOAD_SLACK <= load_bound(loads)


@given(st.binary(max_size=2000), st.binary(max_size=2000))
def test_prompts_share_exactly_the_keys_of_their_common_blocks(a, b):
    common = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shared = [x == y for x, y in zip(prefix_keys(a), prefix_keys(b), strict=False)]
    assert shared == [i < common // BLOCK_BYTES for i in range(len(shared))]


def test_keys_differ_between_models_and_are_bounded_in_number():
    prompt = b"x" * (BLOCK_BYTES * (MAX_BLOCKS + 10))
    assert len(prefix_keys(prompt)) == MAX_BLOCKS
    assert prefix_keys(prompt, "a")[0] != prefix_keys(prompt, "b")[0]
    assert prefix_keys(b"x" * (BLOCK_BYTES - 1)) == ()


def test_the_index_matches_leading_blocks_only():
    index = PrefixIndex()
    index.remember([b"1", b"2", b"4"])
    assert index.match([b"1", b"2", b"3", b"4"]) == 2
    assert index.match([b"2"]) == 1
    assert index.match([]) == 0


def test_a_full_index_forgets_the_end_of_the_oldest_prompt_first():
    index = PrefixIndex(capacity=4)
    index.remember([b"1", b"2"])
    index.remember([b"3", b"4"])
    index.remember([b"1", b"5"])
    assert len(index) == 4
    assert index.match([b"1", b"5"]) == 2
    assert index.match([b"1", b"2"]) == 1
    assert index.match([b"3", b"4"]) == 2
