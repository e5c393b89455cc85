"""The book of KV blocks: nothing is lost, shared blocks outlive one holder, the longest unused prefix goes first."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from capstan_engine.scheduler.block_pool import BlockPool


def test_blocks_that_hold_nothing_are_handed_out_before_cached_ones() -> None:
    pool = BlockPool(3)
    cached = pool.take()
    pool.publish(cached, b"prefix")
    pool.give_back([cached])
    assert cached not in [pool.take(), pool.take()]
    assert pool.find(b"prefix") == cached
    assert pool.take() == cached
    assert pool.find(b"prefix") is None


def test_the_longest_unused_prefix_is_given_up_first_and_tails_before_heads() -> None:
    pool = BlockPool(4)
    first, second = [pool.take(), pool.take()], [pool.take(), pool.take()]
    for number, block in enumerate(first + second):
        pool.publish(block, bytes([number]))
    pool.give_back(first)
    pool.give_back(second)
    assert [pool.take() for _ in range(4)] == [*reversed(first), *reversed(second)]


def test_a_shared_block_stays_held_until_its_last_holder_gives_it_back() -> None:
    pool = BlockPool(1)
    block = pool.take()
    pool.publish(block, b"prefix")
    pool.share([block])
    pool.give_back([block])
    assert (pool.num_held, pool.num_free) == (1, 0)
    pool.give_back([block])
    assert (pool.num_held, pool.num_free, pool.num_cached) == (0, 1, 1)


def test_sharing_a_free_cached_block_takes_it_out_of_the_free_ones() -> None:
    pool = BlockPool(1)
    pool.publish(pool.take(), b"prefix")
    pool.give_back([0])
    pool.share([0])
    assert (pool.num_held, pool.num_free, pool.num_cached) == (1, 0, 0)


def test_the_first_block_under_a_key_keeps_it() -> None:
    pool = BlockPool(2)
    first, twin = pool.take(), pool.take()
    pool.publish(first, b"prefix")
    pool.publish(twin, b"prefix")
    pool.give_back([twin])
    assert pool.find(b"prefix") == first
    assert pool.num_cached == 0


def test_a_forgotten_block_is_never_found_again() -> None:
    pool = BlockPool(1)
    pool.publish(pool.take(), b"prefix")
    pool.forget([0])
    assert pool.find(b"prefix") is None
    pool.give_back([0])
    assert (pool.num_free, pool.num_cached) == (1, 0)


class PoolMachine(RuleBasedStateMachine):
    """Random takes, shares, publications and returns against the plainest book: a list of who holds what."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.tables: list[list[int]] = []
        self.content: dict[int, bytes] = {}
        self.num_keys = 0

    @precondition(lambda self: self.pool.num_free)
    @rule()
    def take(self) -> None:
        block = self.pool.take()
        assert all(block not in table for table in self.tables)
        self.content.pop(block, None)
        self.tables.append([block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.tables))[0]
        if block not in self.content:
            self.num_keys += 1
            self.content[block] = str(self.num_keys).encode()
            self.pool.publish(block, self.content[block])

    @precondition(lambda self: self.content)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.content)))
        self.pool.share([block])
        self.tables.append([block])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.pool.give_back(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @invariant()
    def the_books_agree(self) -> None:
        held = Counter(block for table in self.tables for block in table)
        assert self.pool.num_held == len(held)
        assert self.pool.num_free == 6 - len(held)
        assert self.pool.num_cached == len(set(self.content) - set(held))
        for block, key in self.content.items():
            assert self.pool.find(key) == block
            assert self.pool.is_free(block) == (block not in held)


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
test_the_books_agree_whatever_happens = PoolMachine.TestCase
