"""From a pod's status to a replica's phase and sentence: a table of the states that real kubelets report."""

from typing import Any

import pytest

from capstan_operator.decide.seen.observation import Phase
from capstan_operator.world.base import ReplicaFacts
from capstan_operator.world.kubernetes import phases

SCHEDULED = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}
READY = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:09Z"}
NOT_READY = {**READY, "status": "False"}
RUNNING = {"running": {"startedAt": "2026-01-01T00:00:02Z"}}


NOW = phases.epoch("2026-01-01T00:01:30Z")


def replica(manifest: dict[str, Any], *, now: float = NOW, leaving: bool = False) -> ReplicaFacts:
    return phases.replica(manifest, now=now, leaving=leaving)


def container(name: str = "engine", state: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"name": name, "state": state or {}, "restartCount": 0, **fields}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(message: str = "", reason: str = "Error", code: int = 1) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


def pod(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = (), **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "llama-abcdef12-0",
            "uid": "u",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"capstan.dev/revision": "abcdef12"},
        },
        "status": {
            "phase": "Running",
            "conditions": [SCHEDULED],
            "containerStatuses": list(containers),
            "initContainerStatuses": list(init),
            **status,
        },
    }


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu.",
}
CRASHED = container(state=waiting("CrashLoopBackOff", "back-off 20s"), lastState=ended("Traceback\ncannot load\n"))

CASES: dict[str, tuple[dict[str, Any], Phase, str]] = {
    "just created": (pod(phase="Pending", conditions=[]), Phase.PENDING, "no node has been chosen yet"),
    "no room": (
        pod(phase="Pending", conditions=[UNSCHEDULABLE]),
        Phase.PENDING,
        "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
    ),
    "on a node, nothing known": (pod(phase="Pending"), Phase.STARTING, ""),
    "image is pulled": (pod(container(state=waiting("ContainerCreating"))), Phase.STARTING, ""),
    "image cannot be pulled": (
        pod(container(state=waiting("ImagePullBackOff", "no such tag"))),
        Phase.FAILED,
        "ImagePullBackOff: no such tag",
    ),
    "secret is missing": (
        pod(container(state=waiting("CreateContainerConfigError", 'secret "llama-admin" not found'))),
        Phase.FAILED,
        'CreateContainerConfigError: secret "llama-admin" not found',
    ),
    "model is fetched": (
        pod(container(state=waiting("PodInitializing")), init=(container("fetch", RUNNING),)),
        Phase.STARTING,
        "",
    ),
    "model cannot be fetched": (
        pod(
            container(state=waiting("PodInitializing")),
            init=(
                container("fetch", waiting("CrashLoopBackOff"), lastState=ended("source: hf://org/x does not exist")),
            ),
        ),
        Phase.FAILED,
        "source: hf://org/x does not exist",
    ),
    "fetched, engine not made yet": (
        pod(
            container(state=waiting("PodInitializing")),
            init=(container("fetch", ended(reason="Completed", code=0)),),
        ),
        Phase.STARTING,
        "",
    ),
    "weights are loaded": (pod(container(state=RUNNING), conditions=[SCHEDULED, NOT_READY]), Phase.STARTING, ""),
    "serves": (pod(container(state=RUNNING, ready=True), conditions=[SCHEDULED, READY]), Phase.READY, ""),
    "crashed, waits": (pod(CRASHED), Phase.FAILED, "CrashLoopBackOff: cannot load"),
    "crashed just now": (pod(container(state=ended("cannot load"))), Phase.FAILED, "cannot load"),
    "crashed, starts again": (
        pod(container(state=RUNNING, lastState=ended("cannot load"), restartCount=1)),
        Phase.STARTING,
        "cannot load",
    ),
    "refuses the model": (
        pod(container(state=waiting("CrashLoopBackOff"), lastState=ended("infeasible: needs 9 GiB\nbye"))),
        Phase.FAILED,
        "infeasible: needs 9 GiB",
    ),
    "killed for its memory": (
        pod(container(state=waiting("CrashLoopBackOff"), lastState=ended(reason="OOMKilled", code=137))),
        Phase.FAILED,
        "CrashLoopBackOff: OOMKilled: it needed more memory than spec.variants[].resources.memoryMebibytes gives it",
    ),
    "killed silently": (
        pod(container(state=ended(code=139))),
        Phase.FAILED,
        "exited with 139 (Error)",
    ),
    "evicted": (
        pod(phase="Failed", reason="Evicted", message="The node was low on memory."),
        Phase.DRAINING,
        "Evicted: The node was low on memory.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_state_has_its_phase_and_sentence(name: str) -> None:
    manifest, phase, message = CASES[name]
    facts = replica(manifest)
    assert (facts.phase, facts.message) == (phase, message)


@pytest.mark.parametrize("name", CASES)
def test_whatever_is_being_deleted_drains(name: str) -> None:
    manifest = CASES[name][0]
    assert replica(manifest, leaving=True).phase is Phase.DRAINING
    metadata = {**manifest["metadata"], "deletionTimestamp": "2026-01-01T00:01:00Z"}
    assert replica({**manifest, "metadata": metadata}).phase is Phase.DRAINING


def test_addresses_are_known_once_something_listens_there() -> None:
    fetching = replica(
        pod(container(state=waiting("PodInitializing")), init=(container("fetch", RUNNING),), podIP="10.0.0.7")
    )
    assert (fetching.url, fetching.admin_url) == (None, "http://10.0.0.7:9100")
    loading = replica(pod(container(state=RUNNING), podIP="fd00::7"))
    assert (loading.url, loading.admin_url) == ("http://[fd00::7]:8100", "http://[fd00::7]:9100")
    created = replica(pod(container(state=waiting("ContainerCreating")), podIP="10.0.0.7"))
    assert (created.url, created.admin_url) == (None, None)


def test_times_are_the_kubelets() -> None:
    facts = replica(pod(container(state=RUNNING), conditions=[SCHEDULED, READY]))
    assert facts.ready_at is not None
    assert facts.ready_at - facts.created_at == 9
    assert replica(pod(container(state=RUNNING), conditions=[SCHEDULED, NOT_READY])).ready_at is None


def test_restarts_of_fetcher_and_engine_are_counted_together() -> None:
    facts = replica(pod(container(restartCount=2), init=(container("fetch", restartCount=3),)))
    assert facts.restarts == 5


def test_a_gateway_that_started_again_is_another_one() -> None:
    before = phases.gateway(pod(container("gateway", RUNNING)), "r")
    after = phases.gateway(pod(container("gateway", RUNNING, restartCount=1)), "r")
    assert before.id != after.id


def test_a_deployment_without_pods_says_what_it_is_told() -> None:
    condition = {"type": "ReplicaFailure", "reason": "FailedCreate", "message": "exceeded quota"}
    facts = phases.unborn_gateway({"metadata": {"name": "llama-gateway"}, "status": {"conditions": [condition]}})
    assert (facts.phase, facts.message) == (Phase.STARTING, "FailedCreate: exceeded quota")


def test_a_pod_that_should_be_gone_is_not_asked_any_more() -> None:
    manifest = pod(container(state=RUNNING), podIP="10.0.0.7")
    manifest["metadata"]["deletionTimestamp"] = "2026-01-01T00:01:00Z"
    assert replica(manifest, now=NOW).url == "http://10.0.0.7:8100"
    lost = replica(manifest, now=NOW + 60)
    assert (lost.phase, lost.url, lost.admin_url) == (Phase.DRAINING, None, None)
