"""What a person and the operator are told while it lasts."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from capstan_api.names import ENV_ADMIN_TOKEN
from capstan_api.startup import StartupPhase, StartupReport
from capstan_fetch.admin import admin_port
from capstan_fetch.errors import SourceError
from capstan_fetch.progress import Progress, amount, amount_of, duration
from fetch.fake_hub import FakeHub
from fetch.fetching import WANTED, fetched, hub_args
from fetch.served_files import Fault


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_sentence_tells_amount_rate_and_time_left() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(StartupPhase.FETCHING, total_bytes=16_100_000_000, done_bytes=2_350_000_000)
    clock.now += 10
    progress.add(850_000_000)
    assert progress.sentence() == "3.2 of 16.1 GB, 85.0 MB/s, 3 min left"


def test_what_was_there_before_is_no_speed() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(StartupPhase.FETCHING, total_bytes=100, done_bytes=90)
    clock.now += 10
    assert progress.rate() == 0
    assert progress.sentence() == "90 of 100 B, 0 B/s"


def test_a_time_beyond_belief_is_not_told() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(StartupPhase.FETCHING, total_bytes=10**12)
    clock.now += 1
    progress.add(1)
    assert progress.sentence() == "0.0 of 1.0 TB, 1 B/s"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    clock = Clock()
    progress = Progress(clock)
    progress.begin(StartupPhase.FETCHING, total_bytes=10**9)
    for _ in range(100):
        clock.now += 1
        progress.add(1000)
        progress.rate()
    for _ in range(30):
        clock.now += 1
        progress.add(10)
        rate = progress.rate()
    assert rate == pytest.approx(10, rel=0.1)


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16_100_000_000, "16.1 GB"), (10**15, "1000 TB")]
)
def test_amounts(number: int, text: str) -> None:
    assert amount(number) == text


def test_parts_are_told_in_the_unit_of_the_whole() -> None:
    assert amount_of(5_000_000, 16_100_000_000) == "0.0 of 16.1 GB"


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (125, "2 min"), (11100, "3 h 5 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_the_admin_port_reports_a_running_download(hub: FakeHub, tmp_path: Path) -> None:
    hold = Fault("hold", after=2_000_000, path="model.safetensors")
    hub.faults.append(hold)
    progress = Progress()
    work = asyncio.ensure_future(fetched(hub_args(hub, tmp_path / "model"), progress=progress))
    await hold.reached.wait()
    async with admin_port(progress.report, "127.0.0.1", 0, "secret") as port:
        report = await _startup(port, "secret")
        hold.release.set()
        await work
        finished = await _startup(port, "secret")
    assert report.phase is StartupPhase.FETCHING
    assert report.total_bytes == sum(map(len, WANTED.values()))
    assert " of 3.0 MB, " in report.message
    assert finished.phase is StartupPhase.VERIFYING
    assert finished.done_bytes == finished.total_bytes
    assert finished.since >= report.since > 0


async def _startup(port: int, token: str) -> StartupReport:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session,
        session.get(f"http://127.0.0.1:{port}/admin/startup") as response,
    ):
        assert response.status == 200
        return StartupReport.model_validate_json(await response.read())


@pytest.mark.parametrize("path", ["/admin/startup", "/", "/nowhere"])
@pytest.mark.parametrize(
    ("token", "header"),
    [("secret", None), ("secret", "Bearer wrong"), ("secret", "secret"), (None, "Bearer "), (None, None)],
)
async def test_every_path_needs_the_token(token: str | None, header: str | None, path: str) -> None:
    async with (
        admin_port(Progress().report, "127.0.0.1", 0, token) as port,
        aiohttp.ClientSession(headers={"Authorization": header} if header else {}) as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        assert response.status == 401
        assert (ENV_ADMIN_TOKEN in await response.text()) == (token is None)


async def test_a_taken_port_is_an_error_that_names_it() -> None:
    async with admin_port(Progress().report, "127.0.0.1", 0, None) as port:
        with pytest.raises(SourceError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with admin_port(Progress().report, "127.0.0.1", port, None):
                pass
