"""What an image installs is the lock's, whole and with its hashes."""

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "runtime_image" / "locked.py"
LOCK = (ROOT / "requirements.lock").read_text()
IMAGES = {
    "light": ("--extra", "operator", "--extra", "gateway", "--extra", "fetch"),
    "engine": ("--extra", "engine"),
    "torch": ("--package", "torch"),
}


def subset(tmp_path: Path, *options: str) -> str:
    output = tmp_path / "subset.txt"
    subprocess.run([sys.executable, SCRIPT, *options, "--output", output], cwd=ROOT, check=True)
    return output.read_text()


def names(text: str) -> set[str]:
    return {name.lower() for name in re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(name: str) -> set[str]:
    """What an installed package asks for here, its optional parts aside."""
    try:
        wanted = [Requirement(text) for text in requires(name) or ()]
    except PackageNotFoundError:  # for another platform
        return set()
    return {normal(r.name) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}


@pytest.mark.parametrize("image", IMAGES)
def test_a_subset_holds_all_that_its_packages_ask_for(tmp_path: Path, image: str) -> None:
    chosen = names(subset(tmp_path, *IMAGES[image]))
    assert len(chosen) > 10
    assert {(name, need) for name in chosen for need in needs(name) if need not in chosen} == set()


def test_every_line_stands_in_the_lock_with_its_hashes(tmp_path: Path) -> None:
    text = subset(tmp_path, *IMAGES["light"])
    assert set(text.splitlines()) <= set(LOCK.splitlines())
    blocks = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
    assert len(blocks) >= len(names(text))
    assert all("--hash=sha256:" in block for block in blocks)


def test_images_hold_nothing_of_the_other_and_nothing_of_the_tests(tmp_path: Path) -> None:
    light = names(subset(tmp_path, *IMAGES["light"]))
    engine = names(subset(tmp_path, *IMAGES["engine"]))
    assert light.isdisjoint({"torch", "pytest", "transformers", "matplotlib"})
    assert engine.isdisjoint({"kopf", "kubernetes", "aiohttp", "pytest", "transformers"})


def test_torch_and_the_rest_of_the_engine_are_two_halves_of_one_whole(tmp_path: Path) -> None:
    whole = names(subset(tmp_path, *IMAGES["engine"]))
    torch = names(subset(tmp_path, *IMAGES["torch"]))
    rest = names(subset(tmp_path, *IMAGES["engine"], "--minus", "torch"))
    assert torch.isdisjoint(rest)
    assert torch | rest == whole


def test_the_cpu_build_of_torch_has_its_version_and_no_gpu_library(tmp_path: Path) -> None:
    text = subset(tmp_path, "--package", "torch", "--cpu")
    assert re.search(r"^torch==[\d.]+$", text, re.MULTILINE)
    assert not [name for name in names(text) if name.startswith(("nvidia", "cuda", "triton"))]
    assert "sympy" in names(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--extra", "nothing"), "pyproject.toml has no extra 'nothing'"),
        (("--package", "nothing"), "nothing is not in the lock"),
    ],
)
def test_an_unknown_root_is_named(tmp_path: Path, options: tuple[str, ...], says: str) -> None:
    ended = subprocess.run(
        [sys.executable, SCRIPT, *options, "--output", tmp_path / "x"], cwd=ROOT, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
