"""Servers that fail, connections that break, and fetchers that are killed: what has come stays, and is never mixed."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from capstan_fetch.errors import SourceError
from capstan_fetch.manifest import Manifest
from fetch.fake_bucket import FakeBucket
from fetch.fake_hub import FakeHub
from fetch.fetching import AWS, WANTED, bucket_args, contents, fetched, fetcher, hub_args, size_of
from fetch.served_files import Fault

WEIGHTS = WANTED["model.safetensors"]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_fetch.patience._FIRST_WAIT_S", 0.01)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
async def test_an_error_that_may_pass_is_tried_again(hub: FakeHub, tmp_path: Path, status: int) -> None:
    hub.hub_faults.append(Fault("status", status=status))
    hub.faults.append(Fault("status", status=status, headers={"Retry-After": "0"}))
    await fetched(hub_args(hub, tmp_path / "model"))
    assert contents(tmp_path / "model") == WANTED


async def test_a_page_that_is_no_listing_is_asked_for_again(hub: FakeHub, bucket: FakeBucket, tmp_path: Path) -> None:
    hub.hub_faults.append(Fault("none"))
    bucket.list_faults.append(Fault("none"))
    await fetched(hub_args(hub, tmp_path / "hub"))
    await fetched(bucket_args(bucket, tmp_path / "bucket"), AWS)
    assert contents(tmp_path / "hub") == contents(tmp_path / "bucket") == WANTED


@pytest.mark.parametrize("kind", ["cut", "short"])
async def test_a_broken_download_goes_on_where_it_stopped(hub: FakeHub, tmp_path: Path, kind: str) -> None:
    hub.faults.append(Fault(kind, after=1_000_000, path="model.safetensors"))
    await fetched(hub_args(hub, tmp_path / "model"))
    assert contents(tmp_path / "model") == WANTED
    first, second = hub.cdn_seen
    assert first.range is None
    assert second.range is not None
    assert 0 < int(second.range.removeprefix("bytes=").removesuffix("-")) <= 1_000_000


async def test_a_server_without_ranges_is_read_from_the_beginning(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.extend([Fault("cut", after=1_000_000), Fault("whole")])
    await fetched(hub_args(hub, tmp_path / "model", connections=1))
    assert contents(tmp_path / "model") == WANTED


async def test_a_connection_that_goes_silent_is_renewed(hub: FakeHub, tmp_path: Path) -> None:
    silent = Fault("hold", after=1_000_000)
    hub.faults.append(silent)
    try:
        await fetched(hub_args(hub, tmp_path / "model", connections=1, stall_timeout_s=0.2))
    finally:
        silent.release.set()
    assert contents(tmp_path / "model") == WANTED


async def test_patience_ends_with_the_reason(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.extend(Fault("status", status=503) for _ in range(1000))
    with pytest.raises(SourceError, match=r"HTTP 503, and nothing has come for 0 s; it will be tried again"):
        await fetched(hub_args(hub, tmp_path / "model", patience_s=0.3))


async def test_a_server_that_wants_more_time_than_there_is_patience_is_not_waited_for(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.hub_faults.append(Fault("status", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(SourceError, match="HTTP 429"):
        await fetched(hub_args(hub, tmp_path / "model"))


async def test_nobody_at_the_address_is_an_error_that_names_the_host(hub: FakeHub, tmp_path: Path) -> None:
    arguments = hub_args(hub, tmp_path / "model", patience_s=0.2)
    nobody = arguments.endpoint.model_copy(update={"url": "http://127.0.0.1:9"})  # type: ignore[union-attr]
    with pytest.raises(SourceError, match=r"the connection to 127\.0\.0\.1 failed"):
        await fetched(arguments.model_copy(update={"endpoint": nobody}))


@pytest.mark.parametrize("path", sorted(WANTED))
async def test_one_wrong_bit_in_any_file_is_found_and_the_file_fetched_again(
    hub: FakeHub, tmp_path: Path, path: str
) -> None:
    hub.faults.append(Fault("flip", after=len(WANTED[path]) // 2, path=path))
    await fetched(hub_args(hub, tmp_path / "model"))
    assert not hub.faults
    assert contents(tmp_path / "model") == WANTED


async def test_a_file_that_stays_wrong_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.faults.extend(Fault("flip", after=7, path="model.safetensors") for _ in range(2))
    with pytest.raises(SourceError, match=r"model\.safetensors is not what the source lists: wrong checksum"):
        await fetched(hub_args(hub, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


async def test_more_bytes_than_listed_are_not_written(hub: FakeHub, tmp_path: Path) -> None:
    siblings = [hub._sibling(path) for path in WANTED]
    for sibling in siblings:
        if "lfs" in sibling:
            sibling["lfs"]["size"] = 10
    hub.siblings = siblings
    with pytest.raises(SourceError, match=r"another size for model\.safetensors than the 10 bytes"):
        await fetched(hub_args(hub, tmp_path / "model"))
    assert "model.safetensors" not in os.listdir(tmp_path / ".model.partial")


async def test_what_is_left_of_another_version_is_not_continued(bucket: FakeBucket, tmp_path: Path) -> None:
    bucket.faults.append(Fault("cut", after=1_500_000))
    bucket.faults.extend(Fault("status") for _ in range(100))
    with pytest.raises(SourceError):
        await fetched(bucket_args(bucket, tmp_path / "model", connections=1, patience_s=0.1), AWS)
    assert (tmp_path / ".model.partial/model.safetensors").stat().st_size > 0
    bucket.faults.clear()
    bucket.objects["llm/tiny/model.safetensors"] = WEIGHTS[::-1]
    await fetched(bucket_args(bucket, tmp_path / "model"), AWS)
    assert contents(tmp_path / "model")["model.safetensors"] == WEIGHTS[::-1]


async def test_a_killed_fetcher_leaves_no_model_and_the_next_one_goes_on(hub: FakeHub, tmp_path: Path) -> None:
    config = tmp_path / "fetch.json"
    config.write_text(hub_args(hub, tmp_path / "cache/model", connections=2).model_dump_json())
    partial = tmp_path / "cache/.model.partial/model.safetensors"
    for after in (700_000, 750_000, 800_000):
        before = size_of(partial)
        hold = Fault("hold", after=after, path="model.safetensors")
        hub.faults.clear()
        hub.faults.append(hold)
        child = await fetcher(config)
        await hold.reached.wait()
        await _grown(partial, beyond=before)
        child.kill()
        assert await child.wait() == -signal.SIGKILL
        hold.release.set()
        assert not (tmp_path / "cache/model").exists()
    hub.faults.clear()
    child = await fetcher(config)
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    assert contents(tmp_path / "cache/model") == WANTED
    offsets = [int(seen.range.removeprefix("bytes=").removesuffix("-")) if seen.range else 0 for seen in hub.cdn_seen]
    assert offsets == sorted(offsets)
    assert 0 < offsets[1] < offsets[2] < offsets[3] < len(WEIGHTS)
    assert Manifest.read(tmp_path / "cache/model") is not None


async def test_sigterm_ends_at_once_with_a_last_line(hub: FakeHub, tmp_path: Path) -> None:
    config = tmp_path / "fetch.json"
    config.write_text(hub_args(hub, tmp_path / "cache/model").model_dump_json())
    hold = Fault("hold", after=100)
    hub.faults.append(hold)
    child = await fetcher(config)
    await hold.reached.wait()
    child.terminate()
    _, errors = await child.communicate()
    hold.release.set()
    assert child.returncode == 143
    assert errors.decode().splitlines()[-1].startswith("source: stopped before")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("{}", "source: {}: uri: Field required; destination: Field required"),
        ('{"uri": "http://evil/x", "destination": "/x/y"}', "source: {}: uri: String should match"),
        ('{"uri": "hf://a/b", "destination": "/x/../y"}', "source: {}: file: Value error, destination must be"),
        ('{"uri": "s3://abc/d", "revision": "r", "destination": "/x/y"}', "source: {}: file: Value error, revision is"),
        ("not json", "source: {}: file: Invalid JSON"),
    ],
)
async def test_a_wrong_configuration_is_one_line(tmp_path: Path, config: str, line: str) -> None:
    file = tmp_path / "fetch.json"
    file.write_text(config)
    child = await fetcher(file)
    _, errors = await child.communicate()
    assert child.returncode == 2
    assert errors.decode().startswith(line.format(file))
    assert errors.count(b"\n") == 1


async def _grown(path: Path, beyond: int) -> None:
    """Return once the file is larger: what a server has sent reaches the disk a little later."""
    for _ in range(500):
        if size_of(path) > beyond:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{path} has not grown beyond {beyond} bytes")
