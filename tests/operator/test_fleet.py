"""One loop for each resource: when it begins, when it ends, and that it minds its own business."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from capstan_api.manifest import InvalidResource
from capstan_api.v1alpha1 import InferenceDeployment, load
from capstan_operator.errors import ApiUnavailable, Gone
from capstan_operator.fleet import Crew, Fleet, known_status, understood
from capstan_operator.invalid import not_understood
from capstan_operator.world.kubernetes.access import INFERENCE_DEPLOYMENTS
from capstan_operator.world.kubernetes.store import Key, Store

QUICKSTART = load(Path(__file__).parents[2] / "crds/examples/quickstart.yaml").document()
A, B = Key("default", "a"), Key("default", "b")


def manifest(key: Key, uid: str = "1", **spec: Any) -> dict[str, Any]:
    metadata = {"name": key.name, "namespace": key.namespace, "uid": uid, "generation": 1, "managedFields": [{}]}
    return {**QUICKSTART, "metadata": metadata, "spec": {**QUICKSTART["spec"], "scaling": {"maxReplicas": 3}, **spec}}


class FakeWorld:
    def __init__(self, deployment: InferenceDeployment) -> None:
        self.uid = deployment.metadata.uid
        self.wake = asyncio.Event()


class FakeReconciler:
    """Runs until stopped; says what it sees."""

    def __init__(self, world: FakeWorld, source: Callable[[], InferenceDeployment], scene: "Scene") -> None:
        self.world, self.source, self.scene = world, source, scene

    async def run(self, stop: asyncio.Event, on_turn: Callable[[Any], None]) -> None:
        self.scene.note("began", self.world.uid)
        try:
            while not stop.is_set():
                self.world.wake.clear()
                if self.scene.broken.pop(self.world.uid, False):
                    raise RuntimeError("this loop is broken")
                on_turn(self.source().spec.scaling.max_replicas)
                await self.world.wake.wait()
        finally:
            self.scene.note("ended", self.world.uid)


class Scene:
    """A store, a fleet over it, and what happened in order."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.broken: dict[str, bool] = {}
        self.report_fails = False
        self.store = Store(lambda key: self.fleet.wake(key))
        self.fleet = Fleet(
            self.store,
            Crew(
                reconciler=lambda world, source: FakeReconciler(world, source, self),  # type: ignore[arg-type,return-value]
                world=FakeWorld,  # type: ignore[arg-type]
                on_turn=lambda key, turn: self.note("turned", (key.name, turn)),
                on_gone=lambda key: self.note("gone", key.name),
                report_invalid=self._report,
            ),
        )

    async def _report(self, manifest: Any, error: InvalidResource) -> None:
        self.note("invalid", str(error))
        if self.report_fails:
            raise ApiUnavailable("no answer")

    def note(self, what: str, of: Any) -> None:
        self.seen.put_nowait((what, of))

    def put(self, manifest: dict[str, Any], *, gone: bool = False) -> None:
        self.store.take(INFERENCE_DEPLOYMENTS, manifest, gone=gone)

    async def next(self) -> tuple[str, Any]:
        async with asyncio.timeout(10):
            return await self.seen.get()


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    yield scene
    await scene.fleet.close()


async def test_a_standby_watches_and_runs_nothing(scene: Scene) -> None:
    scene.put(manifest(A))
    await asyncio.sleep(0)
    assert scene.seen.empty()
    scene.fleet.lead(True)
    assert await scene.next() == ("began", "1")


async def test_losing_the_lead_ends_every_loop_and_winning_it_begins_them_anew(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.put(manifest(A))
    assert [await scene.next(), await scene.next()] == [("began", "1"), ("turned", ("a", 3))]
    scene.fleet.lead(False)
    assert {await scene.next(), await scene.next()} == {("gone", "a"), ("ended", "1")}
    scene.fleet.lead(True)
    assert await scene.next() == ("began", "1")


async def test_an_event_makes_the_loop_look_at_the_newest_spec(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.put(manifest(A))
    assert [await scene.next(), await scene.next()] == [("began", "1"), ("turned", ("a", 3))]
    scene.put(manifest(A, scaling={"maxReplicas": 5}))
    assert await scene.next() == ("turned", ("a", 5))


async def test_a_burst_of_events_is_answered_by_one_turn(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.put(manifest(A))
    assert [await scene.next(), await scene.next()] == [("began", "1"), ("turned", ("a", 3))]
    for most in (4, 5, 6):
        scene.put(manifest(A, scaling={"maxReplicas": most}))
    assert await scene.next() == ("turned", ("a", 6))
    scene.put(manifest(B, uid="2"))
    assert await scene.next() == ("began", "2")


async def test_a_deleted_resource_ends_its_loop(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.put(manifest(A))
    assert [await scene.next(), await scene.next()] == [("began", "1"), ("turned", ("a", 3))]
    scene.put(manifest(A), gone=True)
    assert {await scene.next(), await scene.next()} == {("gone", "a"), ("ended", "1")}


async def test_a_resource_on_its_way_out_is_left_to_the_garbage_collector(scene: Scene) -> None:
    scene.fleet.lead(True)
    leaving = manifest(A)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    scene.put(leaving)
    scene.put(manifest(B, uid="2"))
    assert await scene.next() == ("began", "2")


async def test_a_resource_made_again_under_its_name_gets_a_new_loop(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.put(manifest(A))
    assert [await scene.next(), await scene.next()] == [("began", "1"), ("turned", ("a", 3))]
    scene.put(manifest(A, uid="2"))
    seen = [await scene.next() for _ in range(4)]
    assert ("ended", "1") in seen
    assert ("began", "2") in seen
    scene.put(manifest(A, uid="2"))
    assert await scene.next() == ("turned", ("a", 3))


async def test_a_loop_that_breaks_starts_again_and_touches_no_other(scene: Scene, monkeypatch: Any) -> None:
    monkeypatch.setattr("capstan_operator.fleet._LONGEST_PAUSE_S", 0.01)
    scene.fleet.lead(True)
    scene.broken["1"] = True
    scene.put(manifest(A))
    assert [await scene.next() for _ in range(4)] == [
        ("began", "1"),
        ("ended", "1"),
        ("began", "1"),
        ("turned", ("a", 3)),
    ]
    scene.put(manifest(B, uid="2"))
    assert await scene.next() == ("began", "2")


async def test_good_after_bad_recovers_even_when_the_fault_could_not_be_written(scene: Scene) -> None:
    scene.fleet.lead(True)
    scene.report_fails = True
    scene.put(manifest(A, scaling={"minReplicas": 9, "maxReplicas": 3}))
    what, said = await scene.next()
    assert what == "invalid"
    assert "minReplicas" in said
    scene.put(manifest(A))
    assert await scene.next() == ("began", "1")


async def test_a_fault_that_could_not_be_written_is_told_again_and_one_that_was_is_not(
    scene: Scene, monkeypatch: Any
) -> None:
    monkeypatch.setattr("capstan_operator.fleet._TELL_AGAIN_S", 0.01)
    scene.fleet.lead(True)
    scene.report_fails = True
    scene.put(manifest(A, scaling={"minReplicas": 9, "maxReplicas": 3}))
    assert [(await scene.next())[0] for _ in range(3)] == ["invalid"] * 3
    scene.report_fails = False
    assert (await scene.next())[0] == "invalid"
    scene.put(manifest(B, uid="2"))
    assert await scene.next() == ("began", "2")


async def test_the_source_tells_of_a_deletion(scene: Scene) -> None:
    from capstan_operator.fleet import _Source

    scene.put(manifest(A))
    source = _Source(scene.store, A, "1")
    assert source() is source()
    scene.put(manifest(A), gone=True)
    with pytest.raises(Gone, match="default/a was deleted"):
        source()


def test_a_status_that_another_version_wrote_is_no_fault_of_the_spec() -> None:
    strange = {**manifest(A), "status": {"memory": "x", "ofTheFuture": 1}}
    assert understood(strange).status.memory == ""
    assert understood({**manifest(A), "status": {"memory": "x"}}).status.memory == "x"


def test_telling_of_a_bad_spec_keeps_what_the_status_held() -> None:
    rolling = {
        "type": "Reconciling",
        "status": "True",
        "reason": "RollingOut",
        "message": "revision 1 takes over",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    before = {**manifest(A), "status": {"memory": "kept", "desiredReplicas": 2, "conditions": [rolling]}}
    applied = not_understood(before, InvalidResource("spec.scaling: wrong", generation=7), 0.0)
    assert (applied.memory, applied.desired_replicas) == ("kept", 2)
    told = {c.type: (c.status, c.reason, c.message) for c in applied.conditions}
    assert told["ConfigurationValid"] == told["Ready"] == ("False", "InvalidSpec", "spec.scaling: wrong")
    assert told["Stalled"][0] == "True"
    assert "Reconciling" not in told
    judged = {c.observed_generation for c in applied.conditions if c.reason == "InvalidSpec"}
    assert judged == {applied.observed_generation} == {7}


@pytest.mark.parametrize(("generation", "judged"), [(3, 3), (None, 0), ("3", 0)])
def test_a_spec_that_cannot_be_understood_is_refused_with_the_generation_that_it_has(
    generation: Any, judged: int
) -> None:
    bad = manifest(A, scaling="anything")
    bad["metadata"]["generation"] = generation
    with pytest.raises(InvalidResource) as refused:
        understood(bad)
    assert refused.value.generation == judged


def test_telling_of_the_same_bad_spec_again_is_the_same_status() -> None:
    error = InvalidResource("spec.scaling: wrong")
    once = not_understood(manifest(A), error, 0.0)
    stored = {**manifest(A), "status": once.model_dump(mode="json", by_alias=True, exclude_none=True)}
    assert not_understood(stored, error, 1e9) == once
    assert known_status(stored).conditions
