"""Resources that share accelerators: who takes part in which budget, and that none is spent twice."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes_house import READY, resource
from worlds import NOW, deployment, learnt, observation, replica

from capstan_api.status import ConditionStatus, ConditionType
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.budgets import DIVIDED_EVERY_S, AcceleratorBudget, Budgets
from capstan_operator.decide import Decision, Memory, Observation, decide
from capstan_operator.decide.scaling.demand import Demand, Tier
from capstan_operator.decide.seen.observation import Allowance, Phase
from fake_kubernetes import FakeKubernetes
from running_operator import running

POOL = AcceleratorBudget(name="pool", accelerators=6)
GPU = [{"name": "gpu", "resources": {"accelerator": {}}}]


def gpu(name: str, *, scaling: dict[str, Any] | None = None, **spec: Any) -> InferenceDeployment:
    made = deployment(scaling={"maxReplicas": 8, **(scaling or {})}, **{"variants": GPU, **spec})
    return made.model_copy(update={"metadata": made.metadata.model_copy(update={"name": name})})


def with_replicas(of: InferenceDeployment, count: int) -> Observation:
    return observation(of, *(replica(of, n) for n in range(count)))


def share(budgets: Budgets, of: InferenceDeployment, count: int = 1, at: float = NOW) -> Allowance | None:
    return budgets.allowance(of, with_replicas(of, count), learnt(of, wanted=count), at)


def busy(wanted: int, needed: int) -> Demand:
    curve = (1.0, *(1 - 0.05 * n for n in range(1, needed)), 0.0)
    tiers = (Tier(priority=0, shortfall=curve),)
    return Demand(floor=1, ceiling=8, needed=needed, asked=needed, wanted=wanted, live=wanted, leaving=0, tiers=tiers)


def test_who_asks_for_no_accelerator_or_for_another_one_takes_no_part() -> None:
    budgets = Budgets([POOL])
    assert share(budgets, deployment()) is None
    amd = [{"name": "amd", "resources": {"accelerator": {"resourceName": "amd.com/gpu"}}}]
    assert share(budgets, gpu("a", variants=amd)) is None
    assert share(Budgets([]), gpu("a")) is None


def test_a_resource_takes_part_in_the_first_budget_that_fits_it() -> None:
    h200 = AcceleratorBudget(name="h200", accelerators=4, node_selector={"product": "H200"})
    budgets = Budgets([h200, POOL])
    selected = gpu("a", scheduling={"nodeSelector": {"product": "H200", "zone": "a"}})
    assert share(budgets, selected) == Allowance(budget="h200", replicas=1, most=4)
    assert share(budgets, gpu("b"), 2) == Allowance(budget="pool", replicas=2, most=6)


def test_a_replica_counts_with_all_that_it_asks_for() -> None:
    slices = [{"name": "gpu", "resources": {"accelerator": {"count": 4}}}]
    assert share(Budgets([POOL]), gpu("a", variants=slices)) == Allowance(budget="pool", replicas=1, most=1)


def test_what_one_has_decided_the_next_cannot_have() -> None:
    budgets, first, second = Budgets([POOL]), gpu("a"), gpu("b")
    for of in (first, second):
        share(budgets, of)
        budgets.decided(of, busy(1, 5))
    later = NOW + DIVIDED_EVERY_S
    given = share(budgets, first, at=later)
    assert given is not None
    assert given.replicas == 5
    budgets.decided(first, busy(5, 5))
    left = share(budgets, second, at=later)
    assert left is not None
    assert left.replicas == 1


def test_a_clock_that_is_set_back_does_not_keep_a_division_in_force() -> None:
    budgets, first, second = Budgets([POOL]), gpu("a"), gpu("b")
    for of in (first, second):
        share(budgets, of)
        budgets.decided(of, busy(1, 5))
    given = share(budgets, first, at=NOW - 3600)
    assert given is not None
    assert given.replicas == 5


def test_who_leaves_or_is_deleted_leaves_its_accelerators() -> None:
    budgets, first, second = Budgets([POOL]), gpu("a"), gpu("b")
    for of in (first, second):
        share(budgets, of)
        budgets.decided(of, busy(3, 6))
    budgets.gone("default", "a")
    left = share(budgets, second, 3, NOW + DIVIDED_EVERY_S)
    assert left is not None
    assert left.replicas == 6


def test_another_node_selector_is_another_budget() -> None:
    other = AcceleratorBudget(name="other", accelerators=2, node_selector={"product": "L4"})
    budgets, first, second = Budgets([other, POOL]), gpu("a"), gpu("b")
    for of in (first, second):
        share(budgets, of)
        budgets.decided(of, busy(3, 6))
    moved = gpu("a", scheduling={"nodeSelector": {"product": "L4"}})
    assert share(budgets, moved, 1, NOW + 1) == Allowance(budget="other", replicas=1, most=2)
    left = share(budgets, second, 3, NOW + DIVIDED_EVERY_S)
    assert left is not None
    assert left.replicas == 6


def test_after_a_restart_nobody_takes_what_another_one_has_although_it_has_not_spoken_yet() -> None:
    silent = gpu("a").document()
    silent["status"] = {"observedGeneration": 1, "desiredReplicas": 3, "replicas": 5, "drainingReplicas": 1}
    budgets, second = Budgets([POOL], lambda: [silent, gpu("b").document()]), gpu("b")
    given = share(budgets, second, 1)
    # Four live and one leaving are five of six.
    assert given is not None
    assert given.replicas == 1
    budgets.decided(second, busy(1, 6))
    still = share(budgets, second, 1, NOW + DIVIDED_EVERY_S)
    assert still is not None
    assert still.replicas == 1


def test_a_resource_that_cannot_be_understood_does_not_end_the_division() -> None:
    broken: dict[str, Any] = {"metadata": {"name": "x", "namespace": "default"}, "spec": {"variants": [{}]}}
    absurd = {**broken, "spec": {"variants": [{"resources": {"accelerator": {"count": -1}}}]}}
    given = share(Budgets([POOL], lambda: [broken, absurd]), gpu("a"))
    assert given == Allowance(budget="pool", replicas=1, most=6)


def decided(of: InferenceDeployment, left: int, count: int, memory: Memory | None = None) -> Decision:
    allowance = Allowance(budget="pool", replicas=left, most=6)
    seen = with_replicas(of, count).changed(allowance=allowance)
    return decide(of, seen, memory or learnt(of, wanted=count), NOW)


def capacity(decision: Decision) -> tuple[ConditionStatus, str, str]:
    found = next(c for c in decision.status.conditions if c.type is ConditionType.CAPACITY_AVAILABLE)
    return found.status, found.reason, found.message


def test_a_share_that_falls_is_obeyed_at_once_and_told() -> None:
    decision = decided(gpu("a", scaling={"minReplicas": 2}), left=1, count=3)
    assert decision.memory.replicas.wanted == 1
    assert decision.said.reason == "AcceleratorBudget"
    assert decision.said.message == "the accelerator budget pool leaves 1: 3 → 1 replica"
    assert decision.demand is not None
    assert (decision.demand.floor, decision.demand.asked, decision.demand.wanted) == (2, 3, 1)
    sentence = "the accelerator budget pool leaves 1, 3 are asked for"
    assert capacity(decision) == (ConditionStatus.FALSE, "AcceleratorBudget", sentence)


def test_a_share_that_suffices_is_no_news() -> None:
    assert capacity(decided(gpu("a"), left=2, count=2))[0] is ConditionStatus.TRUE


@pytest.mark.parametrize("mode", ["Manual", "Shadow"])
def test_what_a_person_has_set_stays_and_is_claimed(mode: str) -> None:
    decision = decided(gpu("a", scaling={"mode": mode, "replicas": 3}), left=1, count=3)
    assert decision.memory.replicas.wanted == 3
    assert decision.demand == Demand.standing(3, 3)


def test_a_demand_counts_those_that_leave() -> None:
    of = gpu("a")
    seen = observation(of, replica(of, 0), replica(of, 1, Phase.DRAINING))
    seen = seen.changed(allowance=Allowance(budget="pool", replicas=2, most=6))
    claimed = decide(of, seen, learnt(of), NOW).demand
    assert claimed is not None
    assert (claimed.live, claimed.leaving) == (1, 1)


@pytest.fixture
async def server() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as made:
        yield made


def pods(server: FakeKubernetes, name: str) -> int:
    return sum(kind == "pods" and pod.startswith(f"{name}-") for kind, _, pod in server.objects)


async def test_an_operator_starts_no_more_than_its_budget_has_whatever_minimums_add_up_to(
    server: FakeKubernetes,
) -> None:
    def kubelet(kind: str, manifest: dict[str, Any], _: bool) -> None:
        if kind == "pods" and "conditions" not in manifest.get("status", {}):
            name = manifest["metadata"]["name"]
            asyncio.get_running_loop().call_soon(lambda: server.change("pods", name, status={"conditions": READY}))
            most.append(pods(server, "llama") + pods(server, "qwen"))

    most: list[int] = []

    server.on_event = kubelet
    declared = resource(variants=GPU, scaling={"minReplicas": 3, "maxReplicas": 8})
    for uid, name in (("uid-1", "llama"), ("uid-2", "qwen")):
        document = declared.document()
        document["metadata"] |= {"name": name, "uid": uid}
        server.put("inferencedeployments", document)
    async with running(server, acceleratorBudgets=[{"name": "pool", "accelerators": 4}]):
        async with asyncio.timeout(30):
            while not all(is_capped(server, name) for name in ("llama", "qwen")):  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.05)
        assert (pods(server, "llama"), pods(server, "qwen")) == (2, 2)
        assert max(most) == 4
    limits = next(o for (kind, _, _), o in server.objects.items() if kind == "pods")["spec"]["containers"][0][
        "resources"
    ]
    assert limits["limits"]["nvidia.com/gpu"] == limits["requests"]["nvidia.com/gpu"] == "1"
    # Another operator finds it so and leaves it so.
    server.requests.clear()
    async with running(server, acceleratorBudgets=[{"name": "pool", "accelerators": 4}]):
        await asyncio.sleep(0)
        assert [r for r in server.writes if r.resource == "pods"] == []


def is_capped(server: FakeKubernetes, name: str) -> bool:
    status = server.find("inferencedeployments", name).get("status", {})
    found = [c for c in status.get("conditions", ()) if c["type"] == ConditionType.CAPACITY_AVAILABLE]
    return status.get("readyReplicas") == 2 and any(c["reason"] == "AcceleratorBudget" for c in found)
