"""From what a kubelet says about a pod to the phase of a replica or gateway, with one sentence for people.

Pure. The surprising idea: the most useful sentence is the last one that the process itself wrote before it ended, which
the kubelet hands on as the termination message; everything else is only told when there is none.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from capstan_api import names
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.decide.verdicts import VERDICTS
from capstan_operator.world.base import GatewayFacts, ReplicaFacts
from capstan_operator.world.kubernetes.engine_pod import ENGINE, FETCH
from capstan_operator.world.kubernetes.gateway import GATEWAY

# Reasons for which a container waits that are no failure.
_PATIENT: Final = frozenset({"ContainerCreating", "PodInitializing"})
# Prefixes of last words that say more than the line after them.
_LONGEST_MESSAGE: Final = 500
# Beyond the grace period, clocks that differ included.
_OVERDUE_S: Final = 60.0


@dataclass(frozen=True)
class State:
    """What a pod is doing."""

    phase: Phase
    message: str = ""


def replica(pod: Mapping[str, Any], *, now: float, leaving: bool = False) -> ReplicaFacts:
    """`leaving` says that its deletion was asked for, whatever the pod itself says by now; `now` is epoch seconds."""
    state = pod_state(pod, (FETCH, ENGINE), leaving=leaving)
    metadata, status = pod["metadata"], pod.get("status", {})
    containers = _containers(status)
    listens = "running" in containers.get(ENGINE, {}).get("state", {})
    tells = listens or "running" in containers.get(FETCH, {}).get("state", {})
    # Whoever should have ended it is silent: so will it be, and asking it would only take time.
    host = None if _is_overdue(metadata, now) else _host(status)
    return ReplicaFacts(
        id=metadata["name"],
        revision=metadata.get("labels", {}).get(names.LABEL_REVISION, ""),
        phase=state.phase,
        created_at=epoch(metadata["creationTimestamp"]),
        ready_at=_since(status, "Ready") if state.phase in (Phase.READY, Phase.DRAINING) else None,
        restarts=_restarts(containers, (FETCH, ENGINE)),
        url=f"http://{host}:{names.PORT_ENGINE}" if host and listens else None,
        admin_url=f"http://{host}:{names.PORT_ENGINE_ADMIN}" if host and tells else None,
        message=state.message,
    )


def gateway(pod: Mapping[str, Any], revision: str) -> GatewayFacts:
    """`revision` is that of the configuration which it is known to go by."""
    state = pod_state(pod, (GATEWAY,))
    status = pod.get("status", {})
    containers = _containers(status)
    restarts = _restarts(containers, (GATEWAY,))
    host = _host(status) if "running" in containers.get(GATEWAY, {}).get("state", {}) else None
    return GatewayFacts(
        # Its counters begin anew with every run of the container, and so does its name here.
        id=f"{pod['metadata']['name']}.{restarts}",
        revision=revision,
        phase=state.phase,
        restarts=restarts,
        url=f"http://{host}:{names.PORT_GATEWAY}" if host else None,
        admin_url=f"http://{host}:{names.PORT_GATEWAY_ADMIN}" if host else None,
        message=state.message,
    )


def unborn_gateway(deployment: Mapping[str, Any]) -> GatewayFacts:
    """The gateway whose Deployment has no pod yet, with the Deployment's own reason where it gives one."""
    failure = _condition(deployment.get("status", {}), "ReplicaFailure") or {}
    return GatewayFacts(
        id=deployment["metadata"]["name"],
        revision="",
        phase=Phase.STARTING,
        message=_sentence(failure.get("reason"), failure.get("message", "")),
    )


def pod_state(pod: Mapping[str, Any], containers: Iterable[str], *, leaving: bool = False) -> State:
    """The phase of a pod whose containers of these names matter, in the order in which they run."""
    status = pod.get("status", {})
    if leaving or pod["metadata"].get("deletionTimestamp") or is_over(pod):
        return State(Phase.DRAINING, _ending(status))
    scheduled = _condition(status, "PodScheduled")
    if scheduled is None or scheduled.get("status") != "True":
        said = (scheduled or {}).get("message") or "no node has been chosen yet"
        return State(Phase.PENDING, _sentence((scheduled or {}).get("reason"), said))
    known = _containers(status)
    for name in containers:
        waiting = known.get(name, {}).get("state", {}).get("waiting")
        if waiting is not None and waiting.get("reason", "ContainerCreating") not in _PATIENT:
            said = last_words(known[name]) or waiting.get("message", "")
            return State(Phase.FAILED, _verdict_first(waiting["reason"], said))
        if "terminated" in known.get(name, {}).get("state", {}) and name != FETCH:
            # Between its end and its next start.
            return State(Phase.FAILED, _verdict_first("", last_words(known[name])))
    if (_condition(status, "Ready") or {}).get("status") == "True":
        return State(Phase.READY)
    before = (last_words(known[name]) for name in containers if name in known)
    return State(Phase.STARTING, next((words for words in before if words), ""))


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether it will never run again: evicted, preempted, or its node was shut down."""
    return pod.get("status", {}).get("phase") in ("Failed", "Succeeded")


def needs_configuration(pod: Mapping[str, Any]) -> bool:
    """Whether the kubelet misses a ConfigMap or Secret that the pod names."""
    return any(
        container.get("state", {}).get("waiting", {}).get("reason") == "CreateContainerConfigError"
        for container in _containers(pod.get("status", {})).values()
    )


def incarnation(pod: Mapping[str, Any], container: str) -> str:
    """Tells one run of a container from the next."""
    restarts = _restarts(_containers(pod.get("status", {})), (container,))
    return f"{pod['metadata']['uid']}/{restarts}"


def last_words(container: Mapping[str, Any]) -> str:
    """Why the container ended last time, empty when it never did or ended well."""
    ended = container.get("state", {}).get("terminated") or container.get("lastState", {}).get("terminated")
    if not ended or ended.get("exitCode") == 0:
        return ""
    if ended.get("reason") == "OOMKilled":
        return "OOMKilled: it needed more memory than spec.variants[].resources.memoryMebibytes gives it"
    lines = [line.strip() for line in ended.get("message", "").splitlines() if line.strip()]
    verdict = next((line for line in reversed(lines) if line.startswith(VERDICTS)), None)
    said = verdict or (lines[-1] if lines else "")
    return (said or f"exited with {ended.get('exitCode')} ({ended.get('reason', 'no reason given')})")[
        :_LONGEST_MESSAGE
    ]


def epoch(timestamp: str) -> float:
    """Epoch seconds of an RFC 3339 time."""
    return datetime.fromisoformat(timestamp.replace("Z", "+00:00")).timestamp()


def _since(status: Mapping[str, Any], kind: str) -> float | None:
    """Since when the condition holds, in epoch seconds; None while it does not."""
    condition = _condition(status, kind) or {}
    return epoch(condition["lastTransitionTime"]) if condition.get("status") == "True" else None


def _is_overdue(metadata: Mapping[str, Any], now: float) -> bool:
    """Whether the pod should be gone by now, as when its node is lost. The timestamp is the end of its grace period."""
    deadline = metadata.get("deletionTimestamp")
    return deadline is not None and now > epoch(deadline) + _OVERDUE_S


def _ending(status: Mapping[str, Any]) -> str:
    said = _sentence(status.get("reason"), status.get("message", ""))
    return said if status.get("phase") == "Failed" else ""


def _containers(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {
        container["name"]: container
        for part in ("initContainerStatuses", "containerStatuses")
        for container in status.get(part) or ()
    }


def _restarts(containers: Mapping[str, Mapping[str, Any]], wanted: Iterable[str]) -> int:
    return sum(int(containers[name].get("restartCount", 0)) for name in wanted if name in containers)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), None)


def _host(status: Mapping[str, Any]) -> str | None:
    """The pod's address as it stands in a URL."""
    address = status.get("podIP")
    return f"[{address}]" if address and ":" in address else address


def _verdict_first(reason: str, said: str) -> str:
    """What the process said alone where it is a verdict, else after the kubelet's reason."""
    return said if said.startswith(VERDICTS) else _sentence(reason, said)


def _sentence(reason: str | None, said: str) -> str:
    return ": ".join(part for part in (reason, said) if part)[:_LONGEST_MESSAGE]
