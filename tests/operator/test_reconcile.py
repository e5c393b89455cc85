"""The loop over a local world of fake processes: what is declared comes about, and nothing stops the loop."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_process import INFEASIBLE_QUEUE
from local_world import SETTINGS, running_world, tell
from worlds import NOW, counters, deployment, observation

from capstan_api.status import ConditionStatus, ConditionType, InferenceDeploymentStatus
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide import Memory, decide
from capstan_operator.decide.feasibility import Told, model_key
from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.errors import WorldError
from capstan_operator.reconcile import Reconciler, Turn, record, replay
from capstan_operator.source import FileSource
from capstan_operator.world.processes import ProcessesWorld


def written(path: Path, of: InferenceDeployment) -> Path:
    path.write_text(yaml.safe_dump(of.document()))
    return path


async def reconciled(
    world: ProcessesWorld,
    source: Callable[[], InferenceDeployment],
    enough: Callable[[Turn], bool],
    within_s: float = 30,
) -> list[Turn]:
    """Turns up to the first that is enough."""
    stop, turns = asyncio.Event(), list[Turn]()

    def on_turn(turn: Turn) -> None:
        turns.append(turn)
        if enough(turn):
            stop.set()

    async with asyncio.timeout(within_s):
        await Reconciler(world, source, settings=SETTINGS).run(stop, on_turn)
    return turns


def is_ready(turn: Turn) -> bool:
    return turn.status is not None and turn.status.ready_replicas == turn.status.desired_replicas > 0


def routed(turn: Turn, num: int) -> bool:
    gateways = turn.observation.gateways if turn.observation else ()
    return bool(gateways) and all(g.table is not None and len(g.table) == num for g in gateways)


async def test_from_nothing_to_a_routed_replica_and_back_to_quiet(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        turns = await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1))
        assert [t.error for t in turns if t.error] == []
        quiet = await reconciled(world, source, lambda t: t.decision is not None and t.decision.actions == ())
        assert quiet[-1].decision is not None
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["readyReplicas"] == 1
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "True"


async def test_an_edited_file_is_followed_and_a_broken_one_is_not(tmp_path: Path) -> None:
    path = written(tmp_path / "web.yaml", deployment())
    async with running_world(tmp_path / "run") as world:
        await reconciled(world, FileSource(path), is_ready)

        source = FileSource(path)
        stop, turns, said = asyncio.Event(), list[Turn](), asyncio.Event()

        def on_turn(turn: Turn) -> None:
            turns.append(turn)
            said.set()

        async def seen(what: Callable[[Turn], bool]) -> None:
            async with asyncio.timeout(30):
                while not any(map(what, turns)):
                    said.clear()
                    await said.wait()
            turns.clear()

        loop = asyncio.create_task(Reconciler(world, source, settings=SETTINGS).run(stop, on_turn))
        await seen(is_ready)
        path.write_text("kind: Nonsense")
        await seen(lambda t: "last valid resource stays in force" in (t.error or ""))
        assert turns == [] or turns[-1].deployment.metadata.name == "web"
        written(path, deployment(scaling={"minReplicas": 2}))
        await seen(lambda t: is_ready(t) and len(t.observation.replicas if t.observation else ()) == 2)
        stop.set()
        await loop
    # The one that could not be understood was one too.
    assert source().metadata.generation == 3


async def test_an_engine_is_asked_once_what_its_model_takes_of_memory(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        turns = await reconciled(world, source, lambda t: t.memory.told is not None and is_ready(t))
    told = [r.figures for t in turns if t.observation for r in t.observation.replicas if r.figures]
    assert len(told) == 1
    assert turns[-1].memory.told == Told(of=model_key(source().spec), figures=told[0])


async def test_a_revision_that_cannot_run_is_taken_back_and_nobody_notices(tmp_path: Path) -> None:
    path = written(tmp_path / "web.yaml", deployment())
    async with running_world(tmp_path / "run") as world:
        source = FileSource(path)
        await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1) and is_true(t, "RolloutHealthy"))
        (before,) = await world.replicas()

        written(path, deployment(engine={"maxQueuedRequests": INFEASIBLE_QUEUE}))
        memory = json.loads((tmp_path / "run" / "status.json").read_text())
        adopted = remembering(source, memory)
        turns = await reconciled(world, adopted, lambda t: is_true(t, "Stalled") and len(replicas_of(t)) == 1)

    status = turns[-1].status
    assert status is not None
    said = {c.type: (c.reason, c.message) for c in status.conditions}
    assert said[ConditionType.ROLLOUT_HEALTHY][0] == "RolledBack"
    assert said[ConditionType.FEASIBLE][1].startswith("the queue is unlucky; spec.engine.maxQueuedRequests of 12")
    assert [(r.id, r.restarts) for r in replicas_of(turns[-1])] == [(before.id, 0)]
    tables = [g.table for t in turns if t.observation for g in t.observation.gateways if g.table is not None]
    assert all(len(table) == 1 for table in tables), "the old replica is routed to all the time"


def remembering(source: FileSource, status: dict[str, object]) -> Callable[[], InferenceDeployment]:
    """The source with the status that an API server would have kept beside the spec."""
    kept = InferenceDeploymentStatus.model_validate(status)
    return lambda: source().model_copy(update={"status": kept})


def is_true(turn: Turn, kind: str) -> bool:
    conditions = turn.status.conditions if turn.status else []
    return any(c.type == kind and c.status is ConditionStatus.TRUE for c in conditions)


def replicas_of(turn: Turn) -> tuple[Replica, ...]:
    return turn.observation.replicas if turn.observation else ()


async def test_held_requests_wake_a_deployment_at_zero_and_idleness_returns_it(tmp_path: Path) -> None:
    sleepy = deployment(scaling={"minReplicas": 0, "idle": {"scaleToZeroAfterSeconds": 1}})
    source = FileSource(written(tmp_path / "web.yaml", sleepy))

    def asleep(turn: Turn) -> bool:
        return turn.status is not None and turn.status.desired_replicas == turn.status.replicas == 0

    async with running_world(tmp_path / "run") as world:
        turns = await reconciled(world, source, asleep)
        status = turns[-1].status
        assert status is not None
        available = next(c for c in status.conditions if c.type is ConditionType.AVAILABLE)
        assert (available.status, available.reason) == (ConditionStatus.TRUE, "ScaledToZero")

        (gateway,) = await world.gateways()
        await tell(gateway.url, "hold")
        # The same loop goes on in life; here a new one adopts the empty world as a restarted operator would.
        woken = await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1))
        assert woken[-1].decision is not None
        assert woken[-1].decision.signals.held == 1


async def test_a_killed_engine_is_taken_off_the_table_and_comes_back(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1))
        (facts,) = await world.replicas()
        await tell(facts.url, "die")

        turns = await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1) and restarted(t))

    tables = [g.table for t in turns if t.observation for g in t.observation.gateways]
    assert () in tables, "while it is away, nobody is sent to it"
    replica = turns[-1].observation.replicas[0] if turns[-1].observation else None
    assert replica is not None
    assert replica.id == facts.id
    assert (replica.phase, replica.url != facts.url) == (Phase.READY, True)


def restarted(turn: Turn) -> bool:
    return turn.observation is not None and any(r.restarts for r in turn.observation.replicas)


async def test_a_turn_that_fails_is_told_and_the_loop_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        works, failures = world.replicas, iter(range(3))

        async def sometimes() -> object:
            if next(failures, None) is not None:
                raise WorldError("the disk is full")
            return await works()

        monkeypatch.setattr(world, "replicas", sometimes)
        turns = await reconciled(world, source, lambda t: t.error is None)

    assert [t.error for t in turns[:-1]] == ["WorldError: the disk is full"] * 3
    status = turns[0].status
    assert status is not None
    ready = next(c for c in status.conditions if c.type is ConditionType.READY)
    assert (ready.status, ready.reason) == (ConditionStatus.FALSE, "ReconcileFailed")
    assert turns[-1].decision is not None


async def test_an_action_that_fails_is_told_and_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:

        async def refuse(revision: str, args: object) -> None:
            raise WorldError("port 8000 is taken")

        monkeypatch.setattr(world, "ensure_gateway", refuse)
        turns = await reconciled(world, source, lambda t: t.status is not None and t.status.ready_replicas == 1)
    assert {t.error for t in turns} == {"EnsureGateway: port 8000 is taken"}


async def test_a_recorded_turn_replays_to_the_same_decision(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        turns = await reconciled(world, source, is_ready)
    for turn in turns:
        line = json.dumps(record(turn), allow_nan=False)
        assert replay(json.loads(line)) == turn.decision


async def test_a_status_at_rest_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FileSource(written(tmp_path / "web.yaml", deployment()))
    async with running_world(tmp_path / "run") as world:
        await reconciled(world, source, lambda t: is_ready(t) and routed(t, 1))
        writes, write = 0, world.write_status

        async def counted(status: object) -> None:
            nonlocal writes
            writes += 1
            await write(status)  # type: ignore[arg-type]

        monkeypatch.setattr(world, "write_status", counted)
        left = iter(range(20))
        await reconciled(world, source, lambda _: next(left, None) is None)
    # Once at the start, once more at most for the first rate that is known.
    assert writes <= 3


async def test_a_clock_that_is_set_back_holds_no_news_up(tmp_path: Path) -> None:
    path, now = written(tmp_path / "web.yaml", deployment()), [NOW]
    async with running_world(tmp_path / "run") as world:
        reconciler = Reconciler(world, FileSource(path), settings=SETTINGS, clock=lambda: now[0])
        await reconciler.turn()
        now[0] -= 3600
        written(path, deployment(scaling={"mode": "Manual", "replicas": 2}))
        turn = await reconciler.turn()
        assert turn.status is not None
        assert turn.status.desired_replicas == 2
        assert json.loads((tmp_path / "run" / "status.json").read_text())["desiredReplicas"] == 2


def test_even_a_poisoned_observation_is_recorded_as_plain_json() -> None:
    of = deployment()
    seen = observation(of, counted=counters().changed(arrived=float("nan")))
    decision = decide(of, seen, Memory(), NOW)
    line = json.dumps(record(Turn(NOW, of, Memory(), seen, decision, decision.status)), allow_nan=False)
    assert replay(json.loads(line)).to_json() == decision.to_json()


def test_a_failed_observation_is_recorded_but_not_replayed() -> None:
    turn = Turn(NOW, deployment(), Memory(), error="WorldError: gone")
    assert record(turn)["error"] == "WorldError: gone"
    with pytest.raises(ValueError, match="failed before"):
        replay(record(turn))
