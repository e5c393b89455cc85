"""The law of memory: what it refuses does not fit, and every remedy that it names is one."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_api.footprint import KV_CACHE_SHARE, Demand, MemoryFigures

MIB = 1 << 20
FIGURES = MemoryFigures(
    weights=24 * MIB,
    position=512,
    kv_token=6144,
    kv_copied=6,
    step_token=18_432,
    step_position=3072,
    step_sequence=81_920,
    loading=6 * MIB,
    processes=480 * MIB,
    max_positions=8192,
)
DEMAND = Demand(64 * MIB, block_size=16, max_model_len=2048, max_batched_tokens=512, max_sequences=16)
DEMANDS = st.builds(
    Demand,
    kv_cache_bytes=st.integers(1, 2048).map(lambda mib: mib * MIB),
    block_size=st.sampled_from([1, 16, 256]),
    max_model_len=st.integers(16, 20_000),
    max_batched_tokens=st.integers(1, 8192),
    max_sequences=st.integers(1, 512),
)


def test_a_footprint_is_the_sum_of_its_parts() -> None:
    need = FIGURES.footprint(DEMAND)
    assert need.weights == 24 * MIB + 2048 * 512
    assert need.kv_cache == 64 * MIB
    assert need.step == 512 * 18_432 + 2048 * 3072 + 16 * 81_920 + 64 * MIB // 6
    assert need.total == need.weights + need.kv_cache + need.step + 480 * MIB


def test_recorded_steps_are_counted_for_every_sequence_and_named_in_a_refusal() -> None:
    recording = FIGURES.model_copy(update={"graph_sequence": 3 * MIB})
    need = recording.footprint(DEMAND)
    assert need.graphs == 16 * 3 * MIB
    assert need.total - FIGURES.footprint(DEMAND).total == need.graphs
    assert "48 for graphs, " in (recording.shortfall(DEMAND, need.total - 1) or "")
    assert "graphs" not in (FIGURES.shortfall(DEMAND, MIB) or "")


def test_loading_counts_where_it_takes_more_than_a_step() -> None:
    small = Demand(MIB, block_size=16, max_model_len=16, max_batched_tokens=1, max_sequences=1)
    assert FIGURES.footprint(small).step == FIGURES.loading


def test_a_cache_that_is_not_copied_costs_a_step_nothing() -> None:
    paged = FIGURES.model_copy(update={"kv_copied": 0})
    assert FIGURES.footprint(DEMAND).step - paged.footprint(DEMAND).step == 64 * MIB // 6


@pytest.mark.parametrize(("kv_cache_bytes", "num_blocks"), [(16 * 6144, 1), (16 * 6144 - 1, 0), (33 * 6144, 2)])
def test_a_cache_holds_whole_blocks(kv_cache_bytes: int, num_blocks: int) -> None:
    assert FIGURES.num_blocks(replace(DEMAND, kv_cache_bytes=kv_cache_bytes)) == num_blocks


@given(DEMANDS, st.integers(0, 16_384))
def test_a_cache_without_a_size_takes_its_share_of_what_the_rest_leaves(demand: Demand, mebibytes: int) -> None:
    available, block = mebibytes * MIB, FIGURES.kv_token * demand.block_size
    found = FIGURES.kv_cache_bytes(demand, available)
    assert found % block == 0
    if found == FIGURES.smallest_kv_cache_bytes(demand):
        return
    assert FIGURES.footprint(replace(demand, kv_cache_bytes=found)).total <= available
    # As many blocks as the share says, but for the one that was rounded off.
    whole = (found // block + 1) / KV_CACHE_SHARE + 1
    assert FIGURES.footprint(replace(demand, kv_cache_bytes=int(whole) * block)).total > available


def test_a_cache_without_a_size_does_not_depend_on_any() -> None:
    sizes = {FIGURES.kv_cache_bytes(replace(DEMAND, kv_cache_bytes=size), 2048 * MIB) for size in (0, MIB, 900 * MIB)}
    assert len(sizes) == 1
    assert sizes.pop() > 1024 * MIB


@given(DEMANDS)
def test_the_smallest_cache_holds_one_request_of_the_greatest_length_and_nothing_smaller_does(demand: Demand) -> None:
    smallest = FIGURES.smallest_kv_cache_bytes(demand)
    needed = -(-demand.max_model_len // demand.block_size)
    assert FIGURES.num_blocks(replace(demand, kv_cache_bytes=smallest)) == needed
    assert FIGURES.num_blocks(replace(demand, kv_cache_bytes=smallest - 1)) == needed - 1


@given(DEMANDS, st.integers(0, 4 << 30))
def test_every_remedy_that_a_refusal_names_is_one(demand: Demand, available: int) -> None:
    refusal = FIGURES.shortfall(demand, available)
    assert (refusal is None) == (FIGURES.footprint(demand).total <= available)
    if refusal is None:
        return
    more = re.search(r"resources\.memoryMebibytes to at least (\d+)", refusal)
    assert more is not None
    assert FIGURES.shortfall(demand, int(more[1]) * MIB) is None
    assert FIGURES.shortfall(demand, (int(more[1]) - 1) * MIB) is not None
    less = re.search(r"engine\.kvCache\.memoryMebibytes to at most (\d+)", refusal)
    if less is not None:
        smaller = replace(demand, kv_cache_bytes=int(less[1]) * MIB)
        assert FIGURES.shortfall(smaller, available) is None
        assert smaller.kv_cache_bytes >= FIGURES.smallest_kv_cache_bytes(demand)
        larger = replace(demand, kv_cache_bytes=(int(less[1]) + 1) * MIB)
        assert FIGURES.shortfall(larger, available) is not None


def test_what_a_device_lacks_no_container_can_give() -> None:
    device = FIGURES.model_copy(update={"on_device": True})
    refusal = device.shortfall(DEMAND, 100 * MIB)
    assert refusal is not None
    assert f"take a device with at least {-(-FIGURES.footprint(DEMAND).total // MIB)}" in refusal
    assert "resources.memoryMebibytes" not in refusal


def test_a_smaller_cache_is_no_remedy_where_one_request_would_not_fit() -> None:
    tight = replace(DEMAND, kv_cache_bytes=FIGURES.smallest_kv_cache_bytes(DEMAND))
    refusal = FIGURES.shortfall(tight, FIGURES.footprint(tight).total - 1)
    assert refusal is not None
    assert "kvCache" not in refusal
