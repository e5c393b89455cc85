"""`capstan fetch`, typed by a person."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from fetch.fake_hub import FakeHub
from fetch.fetching import WANTED, contents


async def _typed(*arguments: str) -> tuple[int, str, str]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "capstan_cli", "fetch", *arguments),
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await child.communicate()
    return await child.wait(), out.decode(), errors.decode()


async def test_it_leaves_a_checkpoint_and_says_how_to_name_it(hub: FakeHub, tmp_path: Path) -> None:
    hub.large = set()
    code, out, errors = await _typed("hf://capstan/tiny", str(tmp_path / "model"), "--endpoint", hub.url)
    assert code == 0, errors
    assert contents(tmp_path / "model") == WANTED
    assert out.startswith(f"uri: file://{tmp_path}/model\n# sha256:")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("http://evil.example/x", "model"), 2, "uri: String should match"),
        (("s3://models/x", "model", "--revision", "main"), 2, "revision is for hf:// sources"),
        (("hf://a/b", "model", "--endpoint", "file:///etc"), 2, "url"),
        (("hf://a/b", "model", "--endpoint", "http://169.254.169.254"), 1, "must not be connected to"),
    ],
)
async def test_what_cannot_be_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    uri, directory, *options = arguments
    ended, _, errors = await _typed(uri, str(tmp_path / directory), *options)
    assert ended == code
    assert sentence in errors
    assert "Traceback" not in errors
