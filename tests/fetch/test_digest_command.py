"""The pin of a checkpoint, as a person computes it."""

import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capstan_cli.errors import InputError
from capstan_cli.main import app
from capstan_cli.pin import digest
from fetch.fake_hub import FakeHub
from fetch.fetching import fetched, hub_args


async def test_the_command_prints_the_pin_of_what_was_fetched(hub: FakeHub, tmp_path: Path) -> None:
    manifest = await fetched(hub_args(hub, tmp_path / "model"))
    printed = CliRunner().invoke(app, ["digest", str(tmp_path / "model")])
    assert printed.output.strip() == manifest.digest


def test_the_pin_is_what_three_old_tools_say(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "b.txt", "a.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "README.md").write_text("not part of it")
    pipe = "sha256sum *.json *.safetensors *.txt | LC_ALL=C sort | sha256sum"
    said = subprocess.run(["sh", "-c", pipe], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert digest(tmp_path) == "sha256:" + said.split()[0]


def test_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    plain, cache, blobs = tmp_path / "plain", tmp_path / "cache", tmp_path / "blobs"
    for folder in (plain, cache, blobs):
        folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (plain / name).write_text(name)
        (blobs / name).write_text(name)
        (cache / name).symlink_to(blobs / name)
    assert digest(plain) == digest(cache)


def test_what_is_no_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no config\.json"):
        digest(tmp_path)
    with pytest.raises(InputError, match=r"has no config\.json"):
        digest(tmp_path / "nowhere")
