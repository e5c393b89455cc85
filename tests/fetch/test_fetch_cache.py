"""One cache, many fetchers, one after the other and at the same time; and what lies there that is not theirs."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from capstan_api.startup import StartupPhase
from capstan_fetch import staging
from capstan_fetch.errors import SourceError
from capstan_fetch.progress import Progress
from fetch.fake_hub import FakeHub
from fetch.fetching import WANTED, contents, fetched, fetcher, hub_args
from fetch.served_files import Fault


async def test_the_second_fetcher_asks_nobody(hub: FakeHub, tmp_path: Path) -> None:
    first = await fetched(hub_args(hub, tmp_path / "model"))
    num_requests = len(hub.seen)
    progress = Progress()
    assert await fetched(hub_args(hub, tmp_path / "model"), progress=progress) == first
    assert len(hub.seen) == num_requests
    assert progress.phase is StartupPhase.VERIFYING
    assert progress.done_bytes == progress.total_bytes == sum(map(len, WANTED.values()))


@pytest.mark.parametrize("path", sorted(WANTED))
async def test_one_flipped_bit_in_the_cache_is_found_and_repaired(hub: FakeHub, tmp_path: Path, path: str) -> None:
    await fetched(hub_args(hub, tmp_path / "model"))
    file = tmp_path / "model" / path
    spoiled = bytearray(file.read_bytes())
    spoiled[len(spoiled) // 2] ^= 1
    file.write_bytes(spoiled)
    await fetched(hub_args(hub, tmp_path / "model"))
    assert contents(tmp_path / "model") == WANTED


@pytest.mark.parametrize("spoil", ["added", "added link", "removed", "link", "manifest"])
async def test_a_cache_that_is_not_what_its_manifest_says_is_not_used(hub: FakeHub, tmp_path: Path, spoil: str) -> None:
    await fetched(hub_args(hub, tmp_path / "model"))
    match spoil:
        case "added":
            (tmp_path / "model/added.json").write_bytes(b"{}")
        case "added link":
            (tmp_path / "model/additional_chat_templates/more.jinja").symlink_to("tools.jinja")
        case "removed":
            (tmp_path / "model/config.json").unlink()
        case "link":
            (tmp_path / "model/config.json").unlink()
            (tmp_path / "elsewhere").write_bytes(WANTED["config.json"])
            (tmp_path / "model/config.json").symlink_to(tmp_path / "elsewhere")
        case "manifest":
            (tmp_path / "model/.capstan-manifest.json").write_text('{"files": {"../../evil": {}}}')
    await fetched(hub_args(hub, tmp_path / "model"))
    assert contents(tmp_path / "model") == WANTED
    assert not (tmp_path / "model/config.json").is_symlink()


async def test_the_lock_is_one_fetchers_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = asyncio.Event()
    try_lock = staging._try_lock

    def watched(descriptor: int, path: Path) -> bool:
        held = try_lock(descriptor, path)
        if not held:
            refused.set()
        return held

    monkeypatch.setattr(staging, "_LOCK_POLL_S", 0.01)
    monkeypatch.setattr(staging, "_try_lock", watched)
    entered: list[str] = []

    async def enter() -> None:
        async with staging.Staging(tmp_path / "cache/model").locked():
            entered.append("second")

    async with staging.Staging(tmp_path / "cache/model").locked():
        second = asyncio.ensure_future(enter())
        waiting = asyncio.ensure_future(refused.wait())
        await asyncio.wait({second, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        entered.append("first")
    await second
    assert entered == ["first", "second"]


async def test_two_fetchers_at_the_same_time_download_once(hub: FakeHub, tmp_path: Path) -> None:
    config = tmp_path / "fetch.json"
    config.write_text(hub_args(hub, tmp_path / "cache/model").model_dump_json())
    hold = Fault("hold", after=1_000_000, path="model.safetensors")
    hub.faults.append(hold)
    first = await fetcher(config)
    await hold.reached.wait()
    second = await fetcher(config)
    assert second.stderr is not None
    assert b"fetching" in await second.stderr.readline()
    hold.release.set()
    (_, said), (_, waited) = await asyncio.gather(first.communicate(), second.communicate())
    assert (first.returncode, second.returncode) == (0, 0), said + waited
    assert contents(tmp_path / "cache/model") == WANTED
    assert b"found in the cache" in waited
    assert len(hub.cdn_seen) == 1


async def test_a_directory_of_somebody_else_is_left_alone(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/precious.txt").write_text("mine")
    with pytest.raises(SourceError, match="was not made by the fetcher; move it away"):
        await fetched(hub_args(hub, tmp_path / "model"))
    assert (tmp_path / "model/precious.txt").read_text() == "mine"


@pytest.mark.parametrize("planted", ["symlink", "hardlink", "fifo"])
async def test_a_link_planted_among_the_partial_files_is_not_written_through(
    hub: FakeHub, tmp_path: Path, planted: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    partial = tmp_path / ".model.partial"
    # An interrupted fetch, so that the plan is there and the file could be taken for its beginning.
    hub.faults.append(Fault("status", status=403, path="model.safetensors"))
    with pytest.raises(SourceError):
        await fetched(hub_args(hub, tmp_path / "model"))
    target = partial / "model.safetensors"
    target.unlink(missing_ok=True)
    match planted:
        case "symlink":
            target.symlink_to(outside)
        case "hardlink":
            target.hardlink_to(outside)
        case "fifo":
            os.mkfifo(target)
    await fetched(hub_args(hub, tmp_path / "model"))
    assert outside.read_bytes() == b""
    assert contents(tmp_path / "model") == WANTED


@pytest.mark.parametrize("name", ["model", ".model.partial", ".model.lock", ".model.partial/additional_chat_templates"])
async def test_links_in_the_place_of_our_own_directories_lead_nowhere(hub: FakeHub, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    cache = tmp_path / "cache"
    (cache / name).parent.mkdir(parents=True)
    (cache / name).symlink_to(outside)
    # Refused or replaced, as long as nothing goes through it.
    with suppress(SourceError):
        await fetched(hub_args(hub, cache / "model"))
    assert os.listdir(outside) == []


async def test_a_cache_that_cannot_be_written_is_an_error_with_a_remedy(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match=r"spec\.model\.cache: .*must be writable"):
        await fetched(hub_args(hub, tmp_path / "file/model"))
