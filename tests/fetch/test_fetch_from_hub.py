"""`hf://` against a hub on this machine: what arrives, what is pinned, what is refused."""

import asyncio
import logging
import os
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from capstan_fetch.errors import Infeasible, SourceError
from capstan_fetch.manifest import Manifest, digest_of_directory
from fetch.fake_hub import COMMIT, FakeHub
from fetch.fetching import UNWANTED, WANTED, contents, fetched, hub_args
from fetch.served_files import Fault


async def test_the_checkpoint_arrives_whole_and_nothing_else_does(hub: FakeHub, tmp_path: Path) -> None:
    manifest = await fetched(hub_args(hub, tmp_path / "model"))
    assert contents(tmp_path / "model") == WANTED
    assert manifest.commit == COMMIT
    assert manifest == Manifest.read(tmp_path / "model")
    assert set(os.listdir(tmp_path)) == {"model", ".model.lock"}


async def test_the_hubs_own_client_gets_the_same_from_our_hub(hub: FakeHub, tmp_path: Path) -> None:
    await asyncio.to_thread(
        snapshot_download, "capstan/tiny", endpoint=hub.url, local_dir=tmp_path / "theirs", token=False, max_workers=1
    )
    manifest = await fetched(hub_args(hub, tmp_path / "ours"))
    theirs = {path: c for path, c in contents(tmp_path / "theirs").items() if not path.startswith(".cache")}
    assert theirs == WANTED | UNWANTED
    # So the pin can be computed from a download of any tool.
    assert digest_of_directory(tmp_path / "theirs") == manifest.digest


async def test_all_files_are_of_the_commit_that_a_branch_was_resolved_to(hub: FakeHub, tmp_path: Path) -> None:
    await fetched(hub_args(hub, tmp_path / "model", revision="v1/release"))
    assert hub.seen[0].path == "/api/models/capstan/tiny/revision/v1%2Frelease"
    assert {request.path.split("/")[4] for request in hub.seen[1:]} == {COMMIT}


async def test_a_hub_that_answers_with_another_commit_than_the_pinned_one_is_refused(
    hub: FakeHub, tmp_path: Path
) -> None:
    hub.answers_with = "f" * 40
    with pytest.raises(SourceError, match=f"commit {'f' * 40} where {COMMIT} was asked for"):
        await fetched(hub_args(hub, tmp_path / "model", revision=COMMIT))


async def test_the_token_goes_to_the_hub_and_never_to_where_it_redirects(hub: FakeHub, tmp_path: Path) -> None:
    hub.token = "hf_very_secret"
    await fetched(hub_args(hub, tmp_path / "model"), {"HF_TOKEN": "hf_very_secret\n"})
    assert {request.headers.get("authorization") for request in hub.seen} == {"Bearer hf_very_secret"}
    assert len(hub.cdn_seen) == 1
    assert "authorization" not in hub.cdn_seen[0].headers


@pytest.mark.parametrize("token", [None, "hf_wrong"])
async def test_a_private_repository_names_the_secret_as_the_remedy(
    hub: FakeHub, tmp_path: Path, token: str | None
) -> None:
    hub.token = "hf_very_secret"
    with pytest.raises(SourceError, match=r"HTTP 401.*secretName"):
        await fetched(hub_args(hub, tmp_path / "model"), {"HF_TOKEN": token} if token else {})


async def test_a_token_that_no_header_can_hold_is_refused_without_being_shown(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="HF_TOKEN holds characters") as caught:
        await fetched(hub_args(hub, tmp_path / "model"), {"HF_TOKEN": "hf_secret\r\nX-Evil: 1"})
    assert "hf_secret" not in str(caught.value)


async def test_no_log_line_holds_a_token_or_a_signed_address(
    hub: FakeHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    hub.token = "hf_very_secret"
    hub.faults.extend([Fault("cut", after=100_000), Fault("status"), Fault("short", after=5)])
    await fetched(hub_args(hub, tmp_path / "model", connections=1), {"HF_TOKEN": hub.token})
    assert "trying again" in caplog.text
    assert "very" not in caplog.text


async def test_an_unknown_revision_is_named(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"spec.model.source.revision: hf://capstan/tiny has no revision v9"):
        await fetched(hub_args(hub, tmp_path / "model", revision="v9"))


async def test_a_digest_that_fits_is_taken_and_another_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    digest = (await fetched(hub_args(hub, tmp_path / "first"))).digest
    await fetched(hub_args(hub, tmp_path / "second", digest=digest))
    with pytest.raises(SourceError, match=f"spec.model.source.digest: .* has {digest}, not sha256:00"):
        await fetched(hub_args(hub, tmp_path / "third", digest="sha256:" + "0" * 64))
    assert not (tmp_path / "third").exists()
    assert not (tmp_path / ".third.partial").exists()


async def test_a_checkpoint_above_the_bound_is_refused_before_a_byte_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(Infeasible, match=r"holds 3\.0 MB, more than the 1\.0 MB"):
        await fetched(hub_args(hub, tmp_path / "model", max_bytes=1_000_000))
    assert len(hub.seen) == 1


async def test_a_checkpoint_larger_than_the_disk_is_refused_before_a_byte_is_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    sibling = hub._sibling("model.safetensors")
    sibling["lfs"]["size"] = sibling["size"] = 10**15
    hub.siblings = [hub._sibling("config.json"), sibling]
    with pytest.raises(Infeasible, match=r"needs 1000 TB more and .* has .* free; name a larger claim"):
        await fetched(hub_args(hub, tmp_path / "model", max_bytes=10**16))
    assert len(hub.seen) == 1


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
async def test_what_is_no_checkpoint_is_refused_with_its_reason(hub: FakeHub, tmp_path: Path, missing: str) -> None:
    del hub.files[missing]
    hub.files.pop("consolidated.safetensors")
    with pytest.raises(SourceError, match=r"no config.json|convert the checkpoint"):
        await fetched(hub_args(hub, tmp_path / "model"))
    assert not (tmp_path / "model").exists()
