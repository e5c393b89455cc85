"""Start-up tells how far it has come, and what is stuck says so to whoever can restart it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
from scripted_client import ScriptedClient
from serving import Served, make_args, serving

from capstan_api.footprint import MemoryFigures
from capstan_api.startup import StartupPhase, StartupReport
from capstan_engine import main
from capstan_engine.errors import EngineDead
from capstan_engine.messages import Loading, Ready
from capstan_engine.server import front_end
from capstan_engine.server.front_end import STUCK_LIMIT_S, FrontEnd
from memory_figures import FIGURES


async def report(served: Served) -> StartupReport:
    return StartupReport.model_validate_json((await served.admin.get("/admin/startup")).content)


async def test_what_the_model_takes_of_memory_is_told_once_it_is_loaded(engine: ScriptedClient) -> None:
    async with serving(engine, load=False) as served:
        assert (await served.admin.get("/admin/figures")).status_code == 503
        await served.front.load()
        told = await served.admin.get("/admin/figures")
        assert MemoryFigures.model_validate_json(told.content) == FIGURES


async def test_loading_is_told_in_bytes_and_the_startup_probe_waits_for_its_end(engine: ScriptedClient) -> None:
    async with serving(engine, load=False) as served:
        first = await report(served)
        assert (first.phase, first.done_bytes, first.total_bytes) == (StartupPhase.LOADING, 0, 0)
        [tell] = engine.on_loading
        tell(Loading(StartupPhase.LOADING, 3_200_000_000, 16_100_000_000))
        probe = await served.http.get("/startupz")
        assert probe.status_code == 503
        assert probe.json()["error"]["message"] == "Loading: 3.2 of 16.1 GB."
        loading = await report(served)
        assert (loading.done_bytes, loading.total_bytes) == (3_200_000_000, 16_100_000_000)
        assert loading.since == first.since
        tell(Loading(StartupPhase.WARMING))
        warming = await report(served)
        assert (warming.phase, warming.message) == (StartupPhase.WARMING, "Warming")
        assert warming.since >= first.since
        await served.front.load()
        assert (await served.http.get("/startupz")).status_code == 200
        assert (await report(served)).phase is StartupPhase.READY


async def test_a_draining_engine_has_started(served: Served) -> None:
    await served.admin.post("/admin/drain")
    assert (await served.http.get("/startupz")).status_code == 200
    assert (await served.http.get("/readyz")).status_code == 503


async def test_a_stuck_engine_is_not_alive_on_either_port(served: Served, engine: ScriptedClient) -> None:
    for silence_s, status in ((STUCK_LIMIT_S, 200), (STUCK_LIMIT_S + 1, 503), (0.0, 200)):
        engine.last_heartbeat_age_s = silence_s
        for port in (served.http, served.admin):
            answer = await port.get("/livez")
            assert answer.status_code == status
            assert (
                status == 200
                or answer.json()["error"]["message"] == "The engine is stuck: it has said nothing for 31 s."
            )


async def test_a_stuck_engine_that_drains_is_not_alive_either(served: Served, engine: ScriptedClient) -> None:
    await served.admin.post("/admin/drain")
    engine.last_heartbeat_age_s = STUCK_LIMIT_S + 1
    assert (await served.http.get("/livez")).status_code == 503


async def test_a_long_load_is_alive(engine: ScriptedClient) -> None:
    async with serving(engine, load=False) as served:
        engine.last_heartbeat_age_s = 1000.0
        assert (await served.http.get("/livez")).status_code == 200


async def test_loading_without_progress_is_given_up_and_any_progress_counts(
    engine: ScriptedClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(front_end, "monotonic", lambda: now)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        waited.append(seconds)
        now += seconds
        if len(waited) == 1:
            engine.on_loading[0](Loading(StartupPhase.LOADING, 7_000_000_000, 9_000_000_000))

    front = FrontEnd(make_args(), engine)
    monkeypatch.setattr(front_end.asyncio, "sleep", sleep)
    given_up = await front.stalled()
    assert waited == [180.0, 180.0]
    assert str(given_up) == "start-up has made no progress for 180 s (Loading: 7.0 of 9.0 GB)"


class NeverReady(ScriptedClient):
    """Its core loads for ever."""

    async def start(self) -> Ready:
        await asyncio.Event().wait()
        raise AssertionError


async def test_the_process_ends_when_its_load_is_stuck(engine: ScriptedClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_end, "LOADING_LIMIT_S", 0.0)
    front = FrontEnd(make_args(), NeverReady(engine.script))
    with pytest.raises(EngineDead, match="no progress"):
        await main._live(make_args(), front, main._Stop())


def test_the_reason_of_an_end_is_left_for_the_kubelet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "termination-log"
    log.write_text("an older and much longer reason")
    monkeypatch.setattr(main, "_TERMINATION_LOG", str(log))
    assert main.main(["--model", "/nowhere"]) == main.EXIT_WRONG
    assert log.read_text().startswith("/nowhere/config.json: not readable")
    assert "older" not in log.read_text()


def test_where_there_is_no_kubelet_no_file_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "_TERMINATION_LOG", str(tmp_path / "termination-log"))
    assert main.main(["--model", "/nowhere"]) == main.EXIT_WRONG
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["capstan_engine", "capstan_gateway"])
def test_sigterm_during_the_imports_ends_the_process_with_0(package: str, tmp_path: Path) -> None:
    # An import that stops for ever stands for one that takes long; it says that it has begun by way of the pipe.
    (tmp_path / "uvloop.py").write_text("import os, time\nos.write(1, b'importing')\ntime.sleep(60)\n")
    path = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", package, "--model", "/nowhere"],
        {**os.environ, "PYTHONPATH": path},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    assert os.read(read, 16) == b"importing"
    os.close(read)
    os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
