"""Which blocks may be shared: same tokens, same past, same salt, and computed."""

from capstan_engine.block_table import block_table
from capstan_engine.scheduler.block_pool import BlockPool
from capstan_engine.scheduler.prefix_cache import PrefixCache
from capstan_engine.scheduler.request import Request
from fakes import make_submit


def request(prompt: list[int], *, salt: str = "") -> Request:
    return Request.from_submit(make_submit(prompt=prompt, cache_salt=salt), 0, max_model_len=1000)


def computed(cache: PrefixCache, pool: BlockPool, prompt: list[int], num_computed: int, *, salt: str = "") -> list[int]:
    """Publish the first `num_computed` tokens of a prompt; returns its block table."""
    holder = request(prompt, salt=salt)
    holder.block_table = block_table(pool.take() for _ in range(-(-len(prompt) // 4)))
    holder.num_computed = num_computed
    cache.publish(holder)
    return list(holder.block_table)


def new_cache() -> tuple[PrefixCache, BlockPool]:
    pool = BlockPool(16)
    return PrefixCache(pool, block_size=4), pool


def test_full_computed_blocks_are_found_and_partial_ones_are_not() -> None:
    cache, pool = new_cache()
    table = computed(cache, pool, list(range(12)), num_computed=10)
    assert cache.match(request(list(range(12)))) == table[:2]


def test_the_last_token_is_always_left_to_compute() -> None:
    cache, pool = new_cache()
    table = computed(cache, pool, list(range(8)), num_computed=8)
    assert cache.match(request(list(range(8)))) == table[:1]
    assert cache.match(request(list(range(9)))) == table[:2]


def test_equal_tokens_after_a_different_past_are_not_shared() -> None:
    cache, pool = new_cache()
    computed(cache, pool, [1, 1, 1, 1, 5, 5, 5, 5], num_computed=8)
    assert cache.match(request([2, 2, 2, 2, 5, 5, 5, 5, 0])) == []


def test_a_match_ends_at_the_first_block_that_differs() -> None:
    cache, pool = new_cache()
    table = computed(cache, pool, [1] * 12, num_computed=12)
    assert cache.match(request([1, 1, 1, 1, 2, 2, 2, 2, 1, 1, 1, 1, 1])) == table[:1]


def test_another_salt_never_shares() -> None:
    cache, pool = new_cache()
    table = computed(cache, pool, [1] * 8, num_computed=8, salt="tenant a")
    assert cache.match(request([1] * 9, salt="tenant b")) == []
    assert cache.match(request([1] * 9)) == []
    assert cache.match(request([1] * 9, salt="tenant a")) == table


def test_token_ids_do_not_run_into_each_other() -> None:
    cache, pool = new_cache()
    computed(cache, pool, [1, 256, 0, 1], num_computed=4)
    assert cache.match(request([1, 0, 256, 1, 0])) == []
    assert cache.match(request([257, 0, 0, 1, 0])) == []
