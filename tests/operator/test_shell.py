"""Around the law: in which order a turn acts, what survives a failure, and what ends the loop."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from local_world import SETTINGS
from worlds import NOW, deployment

from capstan_api.engine_args import EngineArgs, GatewayArgs
from capstan_api.manifest import InvalidResource
from capstan_api.status import ConditionStatus, ConditionType, DecisionAction, DecisionStatus, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Decision, decide, render
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import CapstanOperatorError, Gone, NotLeader, WorldError
from capstan_operator.reconcile import Reconciler, Turn
from capstan_operator.world.base import GatewayFacts, ReplicaFacts


class NotedWorld:
    """A world that only notes what it is asked for; `fails` says which requests it refuses, and how."""

    admin_token = "token"
    endpoint = "http://web"

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.asked: list[str] = []
        self.kept: list[frozenset[str]] = []
        self.statuses: list[InferenceDeploymentStatus] = []
        self.fails: dict[str, CapstanOperatorError] = {}
        self.pods: dict[str, ReplicaFacts] = {}
        self.door: GatewayFacts | None = None

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise self.fails[what]

    def model_directory(self, uri: str) -> Path:
        return Path("/models/tiny")

    async def replicas(self) -> Sequence[ReplicaFacts]:
        return list(self.pods.values())

    async def gateways(self) -> Sequence[GatewayFacts]:
        return [self.door] if self.door else []

    async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
        self._ask("prepare")
        self.kept.append(revisions)

    async def start_replica(self, replica_id: str, revision: str, args: EngineArgs, cpu_millicores: int) -> None:
        self._ask("start")
        self.pods[replica_id] = ReplicaFacts(replica_id, revision, Phase.STARTING, NOW)

    async def drain_replica(self, replica_id: str, timeout_s: float) -> None:
        self._ask("drain")

    async def stop_replica(self, replica_id: str) -> None:
        self._ask("stop")

    async def ensure_gateway(self, revision: str, args: GatewayArgs) -> None:
        self._ask("gateway")
        self.door = GatewayFacts("gateway", revision, Phase.READY)

    async def announce(self, decision: DecisionStatus) -> None:
        self._ask(f"announce {decision.action}")

    async def write_status(self, status: InferenceDeploymentStatus) -> None:
        self._ask("status")
        self.statuses.append(status)

    async def close(self, timeout_s: float | None = None) -> None:
        """Nothing was started."""


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def world() -> NotedWorld:
    return NotedWorld()


def reconciler(
    world: NotedWorld,
    source: Callable[[], InferenceDeployment] | None = None,
    entrance: asyncio.Semaphore | None = None,
    room: asyncio.Semaphore | None = None,
) -> Reconciler:
    return Reconciler(world, source or deployment, settings=SETTINGS, clock=Clock(), entrance=entrance, room=room)


def condition(turn: Turn, kind: ConditionType) -> tuple[ConditionStatus, str, str]:
    assert turn.status is not None
    found = next(c for c in turn.status.conditions if c.type is kind)
    return found.status, found.reason, found.message


async def test_what_is_wanted_is_written_before_it_is_acted_upon(world: NotedWorld) -> None:
    await reconciler(world).turn()
    assert world.asked == ["status", "prepare", "gateway", "start"]
    assert world.kept == [{render.revision(deployment())}]
    assert world.statuses[0].desired_replicas == 1
    assert '"wanted":1' in world.statuses[0].memory


async def test_an_operator_that_died_in_between_finds_out_what_it_wanted(world: NotedWorld) -> None:
    of = deployment(scaling={"minReplicas": 2})
    first = reconciler(world, lambda: of)
    await first.turn()
    half_done = dict(list(world.pods.items())[:1])
    of = of.model_copy(update={"status": world.statuses[-1]})
    world.pods, world.asked = half_done, []

    turn = await reconciler(world, lambda: of).turn()

    assert world.asked.count("start") == 1
    assert turn.decision is not None
    assert turn.decision.memory.replicas.wanted == 2


async def test_without_the_api_server_the_rest_of_the_turn_goes_on(world: NotedWorld) -> None:
    loop = reconciler(world)
    world.fails = {"status": WorldError("no answer"), "prepare": WorldError("no answer")}

    turn = await loop.turn()

    assert turn.error == "WriteStatus: no answer; Prepare: no answer"
    assert "start" in world.asked
    world.fails = {}
    await loop.turn()
    assert len(world.statuses) == 1, "what could not be written is written when it can"


async def test_a_start_that_is_refused_is_a_condition_until_it_is_not(world: NotedWorld) -> None:
    loop = reconciler(world)
    world.fails = {"start": WorldError("exceeded quota")}
    await loop.turn()

    told = condition(await loop.turn(), ConditionType.CAPACITY_AVAILABLE)
    assert told == (ConditionStatus.FALSE, "Refused", "StartReplica: exceeded quota")

    world.fails = {}
    await loop.turn()
    assert condition(await loop.turn(), ConditionType.CAPACITY_AVAILABLE)[0] is ConditionStatus.TRUE


async def test_a_broken_specification_is_a_condition_and_the_last_good_one_stays_in_force(world: NotedWorld) -> None:
    good: list[InferenceDeployment | Exception] = [deployment()]

    def source() -> InferenceDeployment:
        if isinstance(good[-1], Exception):
            raise good[-1]
        return good[-1]

    loop = reconciler(world, source)
    await loop.turn()
    good.append(InvalidResource("spec.slos: required"))

    broken = await loop.turn()
    assert condition(broken, ConditionType.CONFIGURATION_VALID)[:2] == (ConditionStatus.FALSE, "InvalidSpec")
    assert broken.deployment == deployment()
    assert [s.desired_replicas for s in world.statuses] == [1, 1]

    good.append(deployment(scaling={"minReplicas": 2}))
    assert condition(await loop.turn(), ConditionType.CONFIGURATION_VALID)[0] is ConditionStatus.TRUE
    assert world.statuses[-1].desired_replicas == 2


async def test_moments_are_announced_and_holds_are_not(world: NotedWorld) -> None:
    resources = [deployment()]
    loop = reconciler(world, lambda: resources[-1])
    for _ in range(3):
        await loop.turn()
    assert not [what for what in world.asked if what.startswith("announce")]

    resources.append(deployment(scaling={"minReplicas": 2}))
    for _ in range(3):
        await loop.turn()
    assert [what for what in world.asked if what.startswith("announce")] == ["announce ScaleUp"]


async def test_limits_move_too_often_to_be_announced(world: NotedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def both(*inputs: Any) -> Decision:
        decision = decide(*inputs)
        moved = [
            decision.said.model_copy(update={"action": a}) for a in (DecisionAction.SET_LIMITS, DecisionAction.ROLL)
        ]
        return decision.changed(changes=tuple(moved))

    monkeypatch.setattr("capstan_operator.reconcile.decide", both)
    await reconciler(world).turn()
    assert [what for what in world.asked if what.startswith("announce")] == ["announce Roll"]


async def test_an_operator_that_starts_again_writes_nothing_that_is_written_already(world: NotedWorld) -> None:
    first = reconciler(world)
    for _ in range(4):
        await first.turn()
    of, world.asked = deployment().model_copy(update={"status": world.statuses[-1]}), []

    second = reconciler(world, lambda: of)
    for _ in range(4):
        await second.turn()
    assert "status" not in world.asked


@pytest.mark.parametrize("where", ["status", "prepare", "start", "gateway"])
async def test_a_resource_that_was_deleted_ends_its_loop(world: NotedWorld, where: str) -> None:
    world.fails = {where: Gone("web was deleted")}
    turns: list[Turn] = []
    with pytest.raises(Gone):
        async with asyncio.timeout(20):
            await reconciler(world).run(asyncio.Event(), turns.append)
    assert turns == []


async def test_a_source_that_knows_of_the_deletion_ends_the_loop_too(world: NotedWorld) -> None:
    answers: list[Any] = [deployment()]

    def source() -> InferenceDeployment:
        if len(answers) > 1:
            raise Gone("web was deleted")
        answers.append(None)
        return deployment()

    with pytest.raises(Gone):
        await reconciler(world, source).run(asyncio.Event(), lambda _: None)
    assert world.asked == []


async def test_few_enter_at_a_time_and_nobody_waits_once_inside() -> None:
    entrance, stop, everybody = asyncio.Semaphore(1), asyncio.Event(), asyncio.Event()
    entering, later, most_entering = 0, 0, 0

    class Crowded(NotedWorld):
        entered = False

        async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
            nonlocal entering, later, most_entering
            if self.entered:
                # Inside for good: only when all three are there at the same time does any of them go on.
                later += 1
                if later == 3:
                    everybody.set()
                await everybody.wait()
            else:
                entering += 1
                most_entering = max(most_entering, entering)
                await asyncio.sleep(0.01)
                entering -= 1
                self.entered = True
            await super().prepare(deployment, revisions, wanted)

    async with asyncio.timeout(20), asyncio.TaskGroup() as loops:
        for _ in range(3):
            world = Crowded()
            loops.create_task(reconciler(world, entrance=entrance).run(stop, lambda _, of=world: of.wake.set()))
        await everybody.wait()
        stop.set()
    assert most_entering == 1


async def test_there_is_room_for_so_many_turns_at_a_time_and_all_get_theirs() -> None:
    room, stop = asyncio.Semaphore(2), asyncio.Event()
    turning, most_turning, turned = 0, 0, set[int]()

    class Busy(NotedWorld):
        async def prepare(self, deployment: InferenceDeployment, revisions: frozenset[str], wanted: int) -> None:
            nonlocal turning, most_turning
            turning += 1
            most_turning = max(most_turning, turning)
            await asyncio.sleep(0)
            turning -= 1
            await super().prepare(deployment, revisions, wanted)

    def on_turn(number: int) -> None:
        turned.add(number)
        if len(turned) == 5:
            stop.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as loops:
        for number in range(5):
            loops.create_task(reconciler(Busy(), room=room).run(stop, lambda _, n=number: on_turn(n)))
    assert most_turning == 2


async def test_a_gateway_that_cannot_be_told_keeps_nobody_at_the_entrance() -> None:
    entrance, stop = asyncio.Semaphore(1), asyncio.Event()
    world, turns = NotedWorld(), list[Turn]()
    world.fails = {"gateway": WorldError("it does not answer")}

    def on_turn(turn: Turn) -> None:
        turns.append(turn)
        world.wake.set()
        if len(turns) == 1:
            # Somebody else has come, and stays.
            loops.create_task(entrance.acquire())
        elif len(turns) == 3:
            stop.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as loops:
        loops.create_task(reconciler(world, entrance=entrance).run(stop, on_turn))
    assert all("it does not answer" in (turn.error or "") for turn in turns)


async def test_who_no_longer_leads_is_told_so_and_writes_nothing(world: NotedWorld) -> None:
    world.fails = dict.fromkeys(("status", "prepare", "start", "gateway"), NotLeader("the lease is not held"))
    turn = await reconciler(world).turn()
    assert turn.error is not None
    assert "the lease is not held" in turn.error
    assert world.statuses == []


async def test_a_failing_turn_never_wipes_what_was_remembered(
    world: NotedWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = reconciler(world)
    await loop.turn()
    remembered = world.statuses[-1].memory

    async def broken() -> Sequence[ReplicaFacts]:
        raise WorldError("the watch is not ready")

    monkeypatch.setattr(world, "replicas", broken)
    stop, turns = asyncio.Event(), list[Turn]()

    def on_turn(turn: Turn) -> None:
        turns.append(turn)
        if len(turns) == 3:
            stop.set()

    async with asyncio.timeout(20):
        await loop.run(stop, on_turn)
    assert world.statuses[-1].memory == remembered
    assert len(world.statuses) == 2, "the same failure is written once"
    assert {t.error for t in turns} == {"WorldError: the watch is not ready"}
