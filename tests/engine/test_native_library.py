"""The compiled library: built by one command, refused from strangers, and no loss but of speed where it cannot be."""

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from capstan_engine import kernels
from capstan_engine.kernels import native, reference
from capstan_engine.kernels.native import library as module
from capstan_engine.kernels.native.library import build, library

needs_compiler = pytest.mark.skipif(library() is None or shutil.which("c++") is None, reason="nothing can be compiled")


@pytest.fixture
def searched_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The library is looked for again, in a cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "capstan"
    library.cache_clear()


@needs_compiler
def test_it_is_built_for_an_image_by_a_python_that_has_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-S", module.__file__, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    (made,) = tmp_path.iterdir()
    assert done.stdout.strip() == str(made)
    assert made.read_bytes()[:4] == b"\x7fELF"


@needs_compiler
def test_it_is_built_once(searched_anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is not None
    library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert library() is not None
    assert kernels.choose() is native


@needs_compiler
def test_what_others_may_write_is_not_loaded(searched_anew: Path) -> None:
    assert library() is not None
    (made,) = searched_anew.iterdir()
    # It is mapped: its bytes must stay, and another file take its name.
    made.unlink()
    made.write_bytes(b"not a library")
    made.chmod(0o666)
    library.cache_clear()
    assert library() is not None
    assert made.read_bytes()[:4] == b"\x7fELF"


def test_without_a_compiler_torch_computes_and_the_log_names_the_remedy(
    searched_anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert library() is None
    assert kernels.choose() is reference
    if sys.platform == "linux":
        assert "there is no C++ compiler; install g++, or set CXX" in caplog.text


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho unknown option >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(subprocess.SubprocessError, match="unknown option"):
        build(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())
