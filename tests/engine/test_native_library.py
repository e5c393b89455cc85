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
from capstan_engine.kernels.native.library import LEVELS, best_level, build, library

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
        [sys.executable, "-S", module.__file__, str(tmp_path)], capture_output=True, text=True, check=True
    )
    made = [Path(line) for line in done.stdout.splitlines()]
    assert sorted(tmp_path.iterdir()) == sorted(made)
    assert [path.name.split("-")[1] for path in made] == [level.name for level in LEVELS]
    assert all(path.read_bytes()[:4] == b"\x7fELF" for path in made)


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
        build(tmp_path / "cache", LEVELS[0])
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    ("processor", "level"),
    [
        ("fma avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 amx_tile", "avx512bf16"),
        ("fma avx2 avx512f avx512bw avx512vl avx512dq avx512_vnni", "avx512vnni"),
        # Skylake's AVX-512 has no products of bytes.
        ("fma avx2 avx512f avx512bw avx512vl avx512dq", "avx2"),
        ("fma avx2 avx_vnni", "avx2"),
    ],
)
def test_a_processor_gets_the_best_level_that_it_has_all_of(processor: str, level: str) -> None:
    found = best_level(frozenset(processor.split()))
    assert found is not None
    assert found.name == level


def test_a_processor_without_any_level_computes_with_torch_and_the_log_says_why(
    searched_anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert best_level(frozenset(("sse4_2", "avx"))) is None
    monkeypatch.setattr(module, "processor_flags", lambda: frozenset(("sse4_2", "avx")))
    with caplog.at_level(logging.WARNING):
        assert library() is None
    assert not searched_anew.exists()
    if sys.platform == "linux":
        assert "has no AVX2" in caplog.text


@needs_compiler
def test_the_log_names_the_library(searched_anew: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert library() is not None
    assert f"the engine computes with {searched_anew}/capstan-" in caplog.text
