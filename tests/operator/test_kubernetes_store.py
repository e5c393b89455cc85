"""The store: what watches say, what we did ourselves, and what nobody announced."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.world.kubernetes.access import DEPLOYMENTS, INFERENCE_DEPLOYMENTS, PODS
from capstan_operator.world.kubernetes.identity import ANNOTATION_OWNER, Component, Identity
from capstan_operator.world.kubernetes.store import BELIEF_S, Key, Store

OURS = Identity("default", "llama", "owner-1")
KEY = Key("default", "llama")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def pod(name: str, uid: str, owner: Identity = OURS, **metadata: Any) -> dict[str, Any]:
    made = owner.metadata(name, Component.ENGINE, "abcdef12")
    return {"metadata": {**made, "uid": uid, "resourceVersion": "1", **metadata}, "status": {}}


def names_of(store: Store) -> list[str]:
    return [p["metadata"]["name"] for p in store.pods(OURS, Component.ENGINE)]


def test_only_pods_of_this_very_owner_are_its_own() -> None:
    woken: list[Key] = []
    store = Store(woken.append)
    store.take(PODS, pod("a", "1"))
    store.take(PODS, pod("b", "2", Identity("default", "llama", "an-earlier-one")))
    store.take(PODS, pod("c", "3", Identity("default", "other", "owner-2")))
    store.take(PODS, {"metadata": {"name": "d", "namespace": "default", "uid": "4", "labels": {}}})
    assert names_of(store) == ["a"]
    assert woken == [KEY, KEY, Key("default", "other")]


def test_gateway_pods_are_known_by_their_annotation() -> None:
    store = Store()
    manifest = {
        "metadata": {
            "name": "g",
            "namespace": "default",
            "uid": "1",
            "labels": OURS.labels(Component.GATEWAY),
            "annotations": {ANNOTATION_OWNER: OURS.uid},
            "ownerReferences": [{"kind": "ReplicaSet", "uid": "rs", "controller": True}],
        },
        "status": {"phase": "Running"},
    }
    store.take(PODS, {**manifest, "spec": {"containers": []}})
    assert store.pods(OURS, Component.GATEWAY) == [manifest], "of the spec there is no need"
    assert store.pods(Identity("default", "llama", "another"), Component.GATEWAY) == []


def test_a_created_pod_is_there_before_the_watch_shows_it() -> None:
    clock = Clock()
    store = Store(clock=clock)
    store.believe_created(PODS, pod("a", "1"))
    assert names_of(store) == ["a"]
    clock.now += BELIEF_S
    assert names_of(store) == [], "a belief that no watch confirms ends"
    assert names_of(store) == []


def test_a_confirmed_pod_stays() -> None:
    clock = Clock()
    store = Store(clock=clock)
    store.believe_created(PODS, pod("a", "1"))
    store.take(PODS, pod("a", "1", resourceVersion="2"))
    clock.now += 10 * BELIEF_S
    assert names_of(store) == ["a"]


def test_an_answer_that_comes_after_its_event_changes_nothing() -> None:
    store = Store()
    seen = pod("a", "1", resourceVersion="5")
    store.take(PODS, seen)
    store.believe_created(PODS, pod("a", "1"))
    assert store.pods(OURS, Component.ENGINE) == [seen]


def test_a_deleted_pod_is_leaving_whatever_older_events_say() -> None:
    clock = Clock()
    store = Store(clock=clock)
    manifest = pod("a", "1")
    store.take(PODS, manifest)
    assert not store.is_leaving(manifest)
    store.believe_deleted("1")
    store.take(PODS, manifest)
    assert store.is_leaving(manifest)
    clock.now += BELIEF_S
    assert not store.is_leaving(manifest), "the deletion was lost: it may be asked for again"
    assert store.is_leaving(pod("a", "1", deletionTimestamp="2026-01-01T00:00:00Z"))


def test_the_end_of_a_namesake_does_not_end_its_successor() -> None:
    store = Store()
    store.take(PODS, pod("a", "1"))
    store.take(PODS, pod("a", "2"))
    store.take(PODS, pod("a", "1"), gone=True)
    assert names_of(store) == ["a"]
    store.take(PODS, pod("a", "2"), gone=True)
    assert names_of(store) == []


def test_a_pod_whose_label_somebody_edits_changes_hands_and_leaves_nothing_behind() -> None:
    woken: list[Key] = []
    store = Store(woken.append)
    store.take(PODS, pod("a", "1"))
    edited = pod("a", "1")
    edited["metadata"]["labels"] = Identity("default", "other", "owner-2").labels(Component.ENGINE)
    store.take(PODS, edited)
    assert names_of(store) == []
    assert woken == [KEY, KEY, Key("default", "other")], "both have to look"
    store.take(PODS, edited, gone=True)
    assert names_of(store) == []


def test_a_deletion_that_nobody_announces_is_forgotten() -> None:
    clock = Clock()
    store = Store(clock=clock)
    for n in range(100):
        store.believe_deleted(f"gone before we asked {n}")
        clock.now += BELIEF_S
    assert len(store._deleted) == 1


def test_the_resource_and_the_gateways_deployment_are_kept() -> None:
    store = Store()
    resource = {"metadata": {"name": "llama", "namespace": "default", "uid": "owner-1"}}
    store.take(INFERENCE_DEPLOYMENTS, resource)
    assert (store.deployment(KEY), store.deployments()) == (resource, [KEY])
    gateway = {"metadata": {**OURS.metadata("llama-gateway", Component.GATEWAY), "uid": "d"}}
    store.take(DEPLOYMENTS, gateway)
    assert store.gateway(OURS) == gateway
    assert store.gateway(Identity("default", "llama", "another")) is None
    store.take(INFERENCE_DEPLOYMENTS, resource, gone=True)
    assert store.deployment(KEY) is None


EVENTS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("123"), st.booleans()), max_size=30)


@given(EVENTS)
def test_after_any_events_the_store_holds_what_the_last_of_each_name_says(events: list[tuple[str, str, bool]]) -> None:
    store = Store()
    last: dict[str, str] = {}
    for name, uid, gone in events:
        store.take(PODS, pod(name, uid), gone=gone)
        if not gone:
            last[name] = uid
        elif last.get(name) == uid:
            del last[name]
    assert {key.name: uid for key, (uid, _) in store.versions(PODS).items()} == last
    assert names_of(store) == sorted(last)
