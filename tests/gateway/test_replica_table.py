"""The table: replaced as a whole, with the work of those that leave."""

import pytest

from capstan_api.replicas import ReplicaEntry, ReplicaState, ReplicaTableUpdate
from capstan_gateway.errors import StaleVersion
from capstan_gateway.replicas import ReplicaTable
from capstan_gateway.routing import BLOCK_BYTES, prefix_keys


def update(*ids, version=None, state=ReplicaState.READY, port=1):
    rows = tuple(ReplicaEntry(id=i, url=f"http://host:{port}", state=state) for i in ids)
    return ReplicaTableUpdate(replicas=rows, version=version)


@pytest.fixture
def opened():
    return []


@pytest.fixture
def table(opened):
    return ReplicaTable(on_ready=lambda: opened.append(True))


def test_replacing_with_the_same_rows_keeps_their_state(table):
    table.replace(update("a", "b"))
    before = table.ready()
    assert not table.replace(update("a", "b"))
    assert table.ready() == before
    assert table.replace(update("a"))


def test_a_removed_replica_stays_until_its_last_request_has_ended(table):
    table.replace(update("a"))
    (replica,) = table.ready()
    with table.assigned(replica, (), 10):
        table.replace(update())
        assert table.ready() == []
        (row,) = table.status().replicas
        assert (row.id, row.in_table, row.in_flight) == ("a", False, 1)
    assert table.status().replicas == ()


def test_a_new_address_under_an_old_id_is_a_new_replica(table):
    table.replace(update("a", port=1))
    (old,) = table.ready()
    with table.assigned(old, (), 10):
        table.replace(update("a", port=2))
        (new,) = table.ready()
        assert new is not old
        assert new.num_requests == 0
        assert table.num_in_flight == 1


def test_a_replica_that_returns_with_its_address_while_it_finishes_is_counted_once_it_is_free(table):
    table.replace(update("a"))
    (old,) = table.ready()
    with table.assigned(old, (), 10):
        table.replace(update())
        table.replace(update("a"))
        assert [row.in_table for row in table.status().replicas] == [True, False]
    assert [row.in_flight for row in table.status().replicas] == [0]


def test_draining_replicas_are_not_ready(table, opened):
    table.replace(update("a", state=ReplicaState.DRAINING))
    assert table.ready() == []
    assert opened == []
    table.replace(update("a"))
    assert opened == [True]


def test_an_older_version_is_refused_and_an_equal_one_is_not(table):
    table.replace(update("a", version=5))
    table.replace(update("a", version=5))
    with pytest.raises(StaleVersion, match="5"):
        table.replace(update(version=4))
    assert len(table.ready()) == 1


def test_prefill_load_counts_only_what_is_not_cached_and_ends_with_the_first_byte(table):
    table.replace(update("a"))
    (replica,) = table.ready()
    keys = prefix_keys(b"x" * (4 * BLOCK_BYTES))
    with table.assigned(replica, keys, 260) as first:
        assert replica.prefill_tokens == 260
        first.prefill_done()
        first.prefill_done()
        assert (replica.prefill_tokens, replica.num_requests) == (0, 1)
        with table.assigned(replica, keys, 260):
            assert replica.prefill_tokens == 260 - 4 * 64
    assert (replica.prefill_tokens, replica.num_requests) == (0, 0)


def test_taking_back_a_replica_opens_the_door_again(table, opened):
    table.replace(update("a"))
    (replica,) = table.ready()
    table.put_aside(replica, 9.0)
    table.take_back(replica)
    table.take_back(replica)
    assert replica.aside_until == 0
    assert opened == [True, True]
