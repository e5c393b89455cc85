"""Which operator acts: the claim as a value, the fence in time, and two operators over one lease."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from capstan_operator.errors import ApiConflict, ApiNotFound, ApiUnavailable, NotLeader
from capstan_operator.lease import Lease, Terms, claim
from capstan_operator.world.kubernetes.api import KubernetesApi
from fake_kubernetes import FakeKubernetes, refusal

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
A = Terms("capstan-operator", "system", "a")
B = Terms("capstan-operator", "system", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def held_by(holder: str, transitions: int = 3) -> dict[str, Any]:
    return {
        "metadata": {"name": A.name, "namespace": A.namespace, "resourceVersion": "7", "labels": {"theirs": "x"}},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-01-01T00:00:00.000000Z",
            "renewTime": "2026-01-02T03:04:00.000000Z",
            "leaseTransitions": transitions,
        },
    }


def test_a_lease_that_nobody_has_is_made() -> None:
    wanted = claim(None, A, 0, NOW)
    assert wanted is not None
    assert wanted["spec"]["holderIdentity"] == "a"
    assert wanted["spec"]["leaseTransitions"] == 0
    assert wanted["spec"]["renewTime"] == "2026-01-02T03:04:05.000678Z"
    assert "resourceVersion" not in wanted["metadata"]


def test_ones_own_lease_is_renewed_without_a_transition() -> None:
    wanted = claim(held_by("a"), A, 1, NOW)
    assert wanted is not None
    assert wanted["spec"]["leaseTransitions"] == 3
    assert wanted["spec"]["acquireTime"] == "2026-01-01T00:00:00.000000Z"
    assert wanted["metadata"] == held_by("a")["metadata"]


def test_a_lease_that_was_given_back_is_taken_at_once() -> None:
    wanted = claim(held_by(""), A, 0, NOW)
    assert wanted is not None
    assert wanted["spec"]["leaseTransitions"] == 4


@pytest.mark.parametrize(("unchanged_s", "taken"), [(0, False), (14.9, False), (15, True), (1000, True)])
def test_anothers_lease_is_taken_only_when_it_stood_still_for_its_duration(unchanged_s: float, taken: bool) -> None:
    assert (claim(held_by("b"), A, unchanged_s, NOW) is not None) is taken


def test_a_takeover_carries_the_version_that_was_read() -> None:
    wanted = claim(held_by("b"), A, 15, NOW)
    assert wanted is not None
    assert wanted["metadata"]["resourceVersion"] == "7"


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as server:
        yield server


@pytest.fixture
async def api(server: FakeKubernetes) -> AsyncIterator[KubernetesApi]:
    client = ApiClient(Configuration(host=server.url))
    yield KubernetesApi(client)
    await client.close()


async def test_two_operators_never_hold_it_together_and_the_standby_takes_over_when_the_first_falls_silent(
    api: KubernetesApi,
) -> None:
    clock = Clock()
    first, second = Lease(api, A, clock=clock), Lease(api, B, clock=clock)
    await first.attempt()
    await second.attempt()
    assert (first.is_held, second.is_held) == (True, False)
    # `first` was stopped; `second` goes on looking.
    for _ in range(5):
        clock.now += 3
        await second.attempt()
        assert not (first.is_held and second.is_held)
    assert second.is_held
    # The paused one wakes, and before it knows anything it may not write.
    with pytest.raises(NotLeader, match="a does not hold"):
        await first.check()
    await first.attempt()
    assert (first.is_held, second.is_held) == (False, True)


async def test_a_renewal_goes_out_without_reading_first(server: FakeKubernetes, api: KubernetesApi) -> None:
    lease = Lease(api, A)
    await lease.attempt()
    server.requests.clear()
    await lease.attempt()
    assert [request.verb for request in server.requests] == ["update"]


async def test_the_fence_counts_from_before_the_request_and_ends_a_margin_early(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    clock = Clock()
    lease = Lease(api, A, clock=clock)

    def slow(_: object) -> None:
        clock.now += 4

    await lease.attempt()
    server.faults.append(slow)
    await lease.attempt()
    # Ten seconds of fifteen, of which four were spent on the way.
    clock.now += 5.9
    await lease.check()
    clock.now += 0.2
    with pytest.raises(NotLeader):
        await lease.check()


async def test_a_lease_that_cannot_be_renewed_is_held_to_its_end_and_no_longer(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    clock = Clock()
    lease = Lease(api, A, clock=clock)
    await lease.attempt()
    server.faults.append(lambda _: refusal(503, "overloaded"))
    clock.now += 9
    with pytest.raises(ApiUnavailable):
        await lease.attempt()
    assert lease.is_held
    clock.now += 1
    assert not lease.is_held


async def test_the_loser_of_a_race_for_a_free_lease_does_not_hold_it(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    first, second = Lease(api, A), Lease(api, B)
    await first.attempt()
    await first.release()
    await second._look()
    await first.attempt()
    # `second` has still seen it free, and its write must fail on the version.
    server.faults.append(lambda r: refusal(409, "the object has been modified") if r.verb == "update" else None)
    await second.attempt()
    assert (first.is_held, second.is_held) == (True, False)


async def test_giving_it_back_fences_first_and_lets_the_next_one_in_at_once(
    server: FakeKubernetes, api: KubernetesApi
) -> None:
    first, second = Lease(api, A), Lease(api, B)
    await first.attempt()
    await first.release()
    assert not first.is_held
    await second.attempt()
    assert second.is_held
    assert server.find("leases", A.name, "system")["spec"]["leaseTransitions"] == 1


async def test_winning_and_losing_are_told_once_each(server: FakeKubernetes, api: KubernetesApi) -> None:
    terms = Terms(A.name, A.namespace, "a", duration_s=1, renew_s=0.02, margin_s=0.8)
    told: asyncio.Queue[bool] = asyncio.Queue()
    running = asyncio.create_task(Lease(api, terms).run(told.put_nowait))
    async with asyncio.timeout(10):
        assert await told.get() is True
        server.faults.append(lambda _: refusal(503, "overloaded"))
        assert await told.get() is False
        server.faults.clear()
        assert await told.get() is True
    running.cancel()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 9), st.booleans()), max_size=40))
def test_whatever_happens_at_most_one_may_write(steps: list[tuple[str, float, bool]]) -> None:
    """Each step: who comes to try, how much time has passed, and whether its answer is lost on the way."""
    asyncio.run(_at_most_one(steps))


async def _at_most_one(steps: list[tuple[str, float, bool]]) -> None:
    clock, server = Clock(), _Memory()
    leases = {"a": Lease(server, A, clock=clock), "b": Lease(server, B, clock=clock)}  # type: ignore[arg-type]
    for who, passed_s, lost in steps:
        clock.now += passed_s
        server.loses_answer = lost
        try:
            await leases[who].attempt()
        except ApiUnavailable:
            assert lost
        assert not all(lease.is_held for lease in leases.values())


class _Memory:
    """One lease, with the precondition of an API server; may do what it is told and not say so."""

    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.version = 0
        self.loses_answer = False

    async def get(self, *_: object) -> dict[str, Any]:
        if self.live is None:
            raise ApiNotFound("none", 404)
        return self.live

    async def create(self, _: object, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._put(manifest, expected=None)

    async def replace(self, _: object, manifest: dict[str, Any]) -> dict[str, Any]:
        return self._put(manifest, expected=manifest["metadata"].get("resourceVersion"))

    def _put(self, manifest: dict[str, Any], expected: str | None) -> dict[str, Any]:
        current = None if self.live is None else self.live["metadata"]["resourceVersion"]
        if current != expected:
            raise ApiConflict("modified", 409)
        self.version += 1
        self.live = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}
        if self.loses_answer:
            raise ApiUnavailable("no answer")
        return self.live
