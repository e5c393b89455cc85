"""The local world, with fake processes: start, crash, restart, sickness, drain, and nothing left behind."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from local_world import SETTINGS, fake_world, running_world, tell, until
from worlds import deployment

from capstan_api import names
from capstan_api.status import InferenceDeploymentStatus
from capstan_operator.decide import render
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import ModelNotFound, WorldError
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.base import GatewayFacts, ReplicaFacts, World
from capstan_operator.world.processes import ProcessesWorld
from capstan_operator.world.processes.checkpoints import ENV_MODELS, checkpoint_directory
from capstan_operator.world.processes.child import back_off_s
from capstan_operator.world.processes.processors import Processors

ARGS = render.engine_args(deployment(), Path("model"))
DOOR = render.gateway_args(deployment())


async def one(world: World) -> ReplicaFacts:
    (facts,) = await world.replicas()
    return facts


async def started(world: ProcessesWorld, replica_id: str = "web-1") -> ReplicaFacts:
    await world.start_replica(replica_id, "rev", ARGS, 1000)

    async def ready() -> bool:
        return any(f.id == replica_id and f.phase is Phase.READY for f in await world.replicas())

    await until(ready)
    return next(f for f in await world.replicas() if f.id == replica_id)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has ended; only its parent has not looked yet.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_a_replica_starts_is_ready_and_listens_where_it_says(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        facts = await started(world)

        assert facts.url is not None
        assert facts.admin_url != facts.url
        assert facts.ready_at is not None
        assert facts.ready_at >= facts.created_at
        written = json.loads((tmp_path / "config" / "web-1.json").read_text())
        assert (written["port"], written["num_threads"], len(written["cpus"])) == (0, 1, 1)
        assert world.admin_token not in (tmp_path / "config" / "web-1.json").read_text()


async def test_starting_what_runs_does_nothing(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await started(world)
        before = world.pids()
        await world.start_replica("web-1", "rev", ARGS, 1000)
        assert world.pids() == before


async def test_a_crashed_replica_is_restarted_under_its_name_and_says_why(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        facts = await started(world)
        await tell(facts.url, "die")

        async def failed() -> bool:
            return (await one(world)).phase is Phase.FAILED

        async def ready_again() -> bool:
            now = await one(world)
            return now.phase is Phase.READY and now.restarts == 1

        await until(failed)
        assert (await one(world)).message == "exited with 3: the fake was told to die"
        assert (await one(world)).url is None, "nobody may be sent there"
        await until(ready_again)
        assert (await one(world)).id == "web-1"


def test_waits_between_restarts_grow_up_to_a_bound() -> None:
    settings = OperatorSettings(first_restart_s=1, longest_restart_s=60)
    assert [back_off_s(failures, settings) for failures in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert back_off_s(10**6, settings) == 60


async def test_what_cannot_run_is_tried_again_and_again_and_its_last_words_are_kept(tmp_path: Path) -> None:
    broken = ProcessesWorld(
        tmp_path,
        gateway_port=0,
        settings=SETTINGS,
        engine_command=(sys.executable, "-c", "import sys; sys.exit('no such model')"),
        model_directory=lambda _: tmp_path,
    )
    try:
        await broken.start_replica("web-1", "rev", ARGS, 1000)

        async def restarted_often() -> bool:
            return (await one(broken)).restarts >= 3

        await until(restarted_often)
        assert (await one(broken)).message == "exited with 1: no such model"
    finally:
        await broken.close()


async def test_a_sick_process_is_killed_and_started_again(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        facts = await started(world)
        await tell(facts.url, "sicken")

        async def healed() -> bool:
            now = await one(world)
            return now.restarts == 1 and now.phase is Phase.READY

        await until(healed)
        assert (await one(world)).message.startswith("killed by SIGKILL")


async def test_a_stopped_process_is_noticed_although_it_never_answers(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await started(world)
        os.kill(world.pids()["web-1"], signal.SIGSTOP)

        async def restarted() -> bool:
            return (await one(world)).restarts == 1

        await until(restarted)


async def test_a_drain_waits_for_work_and_its_timeout_does_not(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        patient, hasty = await started(world, "web-1"), await started(world, "web-2")
        pids = world.pids()
        await tell(patient.url, "work")
        await tell(hasty.url, "work")
        await world.drain_replica("web-1", 60)
        await world.drain_replica("web-2", 0)

        async def only_the_patient() -> bool:
            return [f.id for f in await world.replicas()] == ["web-1"]

        await until(only_the_patient)
        assert (await one(world)).phase is Phase.DRAINING
        assert is_alive(pids["web-1"])
        await tell(patient.url, "rest")

        async def none() -> bool:
            return not await world.replicas()

        await until(none)
        assert not any(is_alive(pid) for pid in pids.values())
        assert world.processors.taken == {}


async def test_a_replica_in_back_off_can_be_stopped_at_once(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        facts = await started(world)
        await tell(facts.url, "die")
        await world.stop_replica("web-1")

        async def none() -> bool:
            return not await world.replicas()

        await until(none)


OTHER_DOOR = DOOR.model_copy(update={"max_held_requests": 3})


async def door_of(world: ProcessesWorld, restarts: int = 0) -> GatewayFacts:
    """The gateway, once it is ready and has been started again so often."""

    async def ready() -> bool:
        return [(facts.phase, facts.restarts) for facts in await world.gateways()] == [(Phase.READY, restarts)]

    await until(ready)
    (facts,) = await world.gateways()
    return facts


def configured(run_dir: Path) -> int:
    """The bound on held requests in the file that a gateway starts with."""
    bound: int = json.loads((run_dir / "config" / "gateway.json").read_text())["max_held_requests"]
    return bound


async def test_a_gateway_that_serves_is_configured_in_place_and_starts_so_after_a_crash(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.ensure_gateway("one", DOOR)
        first, pids = await door_of(world), world.pids()
        await world.ensure_gateway("one", DOOR)

        await world.ensure_gateway("two", OTHER_DOOR)
        assert world.pids() == pids, "the same process"
        second = await door_of(world)
        assert (second.revision, second.url, second.restarts) == ("two", first.url, 0)
        log = tmp_path / "logs" / "gateway.log"
        assert log.read_text().splitlines() == ["configured: max_held_requests 3"]
        assert configured(tmp_path) == 3

        await tell(second.url, "die")
        third = await door_of(world, restarts=1)
        assert (third.revision, third.url) == ("two", first.url)
        assert configured(tmp_path) == 3
        assert world.pids() != pids


async def test_a_gateway_that_does_not_listen_yet_is_told_when_it_does(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.ensure_gateway("one", DOOR)
        await world.ensure_gateway("two", OTHER_DOOR)
        assert (await door_of(world)).revision == "one", "asked again, the loop will say so once more"
        await world.ensure_gateway("two", OTHER_DOOR)
        assert (await door_of(world)).revision == "two"
        assert configured(tmp_path) == 3


async def test_a_dead_gateway_starts_with_the_new_configuration(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"first_restart_s": 3600, "longest_restart_s": 3600})
    async with running_world(tmp_path, settings) as world:
        await world.ensure_gateway("one", DOOR)
        await tell((await door_of(world)).url, "die")

        async def dead() -> bool:
            return [facts.phase for facts in await world.gateways()] == [Phase.FAILED]

        await until(dead)
        await world.ensure_gateway("two", OTHER_DOOR)
        # It does not wait for the rest of its back-off: the old configuration may be what killed it.
        assert (await door_of(world, restarts=1)).revision == "two"
        assert configured(tmp_path) == 3


async def test_a_configuration_that_the_gateway_refuses_is_said_and_not_kept(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.ensure_gateway("one", DOOR)
        facts = await door_of(world)
        await tell(facts.url, "refuse")
        with pytest.raises(WorldError, match=r"refuses .* 400: .*slo_classes"):
            await world.ensure_gateway("two", OTHER_DOOR)
        assert (await door_of(world)).revision == "one"
        assert configured(tmp_path) == DOOR.max_held_requests


async def test_close_ends_everything_and_may_be_repeated(tmp_path: Path) -> None:
    world = fake_world(tmp_path)
    await world.ensure_gateway("one", DOOR)
    await started(world)
    pids = world.pids()
    assert len(pids) == 2

    await world.close(5)
    await world.close()

    assert not any(is_alive(pid) for pid in pids.values())


_PARENT = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {here!r})
from local_world import fake_world
from test_processes_world import DOOR, started

async def main():
    world = fake_world(Path({run_dir!r}))
    await world.ensure_gateway("one", DOOR)
    await started(world)
    print(*world.pids().values(), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_killed_operator_leaves_no_orphan(tmp_path: Path) -> None:
    code = _PARENT.format(here=str(Path(__file__).parent), run_dir=str(tmp_path))
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await asyncio.wait_for(parent.stdout.readline(), 30)).split()]
    assert len(pids) == 2
    assert all(map(is_alive, pids))

    parent.kill()
    await parent.wait()

    async def all_gone() -> bool:
        return not any(map(is_alive, pids))

    await until(all_gone)


async def test_status_is_written_whole(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        await world.write_status(InferenceDeploymentStatus(replicas=3))
        assert json.loads((tmp_path / "status.json").read_text())["replicas"] == 3


def test_a_run_directory_that_cannot_be_is_refused(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(WorldError, match="run directory"):
        fake_world(in_the_way)


def test_processors_are_spread_first_and_shared_then() -> None:
    processors = Processors([4, 2, 0])
    assert processors.take("a", 1000) == (0,)
    assert processors.take("b", 1001) == (2, 4)
    assert processors.take("c", 500) == (0,), "the least taken one, the lowest among equals"
    assert processors.takers(0) == 2
    assert processors.take("a", 1000) == (0,)
    processors.give_back("b")
    assert processors.take("d", 9000) == (0, 2, 4)


def test_checkpoints_are_found_by_name_and_by_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    monkeypatch.setenv(ENV_MODELS, str(tmp_path))
    assert checkpoint_directory("bundled://tiny") == tmp_path / "tiny"
    assert checkpoint_directory(f"file://{tmp_path}/tiny") == tmp_path / "tiny"
    with pytest.raises(ModelNotFound, match=ENV_MODELS):
        checkpoint_directory("bundled://huge")
    with pytest.raises(ModelNotFound, match="source"):
        checkpoint_directory(f"file://{tmp_path}")


def test_the_admin_token_is_new_for_every_run(tmp_path: Path) -> None:
    tokens = {fake_world(tmp_path).admin_token for _ in range(3)}
    assert len(tokens) == 3
    assert all(len(token) >= 32 for token in tokens)
    assert names.ENV_ADMIN_TOKEN not in os.environ
