"""Bytes are those of the file, whether the page cache holds them, a disk is asked past it, or neither can be told."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from capstan_engine.models import disk
from capstan_engine.models.disk import PAGE, File

SIZE = 40 * PAGE + 123
PIECES = [(0, 1), (0, PAGE), (7, 9), (PAGE - 1, PAGE + 1), (3 * PAGE, 5 * PAGE), (5, 30 * PAGE + 7), (SIZE - 1, SIZE)]


@pytest.fixture
def memory() -> memoryview:
    held = torch.zeros(SIZE + 3 * PAGE, dtype=torch.uint8)
    return held.numpy().data[-held.data_ptr() % PAGE :]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    written = tmp_path / "file"
    written.write_bytes(os.urandom(SIZE))
    return written


def forget(path: Path, offset: int = 0, length: int = 0) -> None:
    """Have the page cache hold nothing of that part."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def half_forgotten(path: Path) -> None:
    forget(path, 8 * PAGE, 8 * PAGE)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else has O_DIRECT and posix_fadvise")
@pytest.mark.parametrize("prepare", [forget, half_forgotten, lambda _: None], ids=["disk", "both", "cached"])
def test_pieces_are_those_of_the_file(path: Path, memory: memoryview, prepare: Callable[[Path], None]) -> None:
    expected = path.read_bytes()
    for begin, end in PIECES:
        prepare(path)
        with File(path) as file:
            assert file.read(begin, end, memory) == expected[begin:end]


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else has O_DIRECT and posix_fadvise")
def test_what_is_not_cached_is_read_past_the_page_cache_and_the_rest_from_there(
    path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        asked.append(bool(_flags(descriptor) & os.O_DIRECT))
        return real(descriptor, buffers, offset)

    real = os.preadv
    monkeypatch.setattr(disk.os, "preadv", preadv)
    with File(path) as file:
        if not file.is_direct:
            pytest.skip("the temporary directory is on no local disk")
        file.read(0, 4 * PAGE, memory)
        forget(path)
        file.read(0, 4 * PAGE, memory)
        # It was not kept: so the next reading is past the cache again.
        file.read(0, 4 * PAGE, memory)
    assert asked == [False, True, True]


@pytest.mark.skipif(sys.platform != "linux", reason="nothing else has O_DIRECT")
@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EIO])
def test_a_disk_that_cannot_be_read_directly_is_read_as_others_are(
    path: Path, memory: memoryview, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if _flags(descriptor) & os.O_DIRECT:
            raise OSError(refusal, os.strerror(refusal))
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(disk.os, "preadv", preadv)
    forget(path)
    with File(path) as file:
        if not file.is_direct:
            pytest.skip("the temporary directory is on no local disk")
        if refusal == errno.EINVAL:
            assert file.read(5, 3 * PAGE, memory) == path.read_bytes()[5 : 3 * PAGE]
        else:
            with pytest.raises(OSError, match="Input/output"):
                file.read(5, 3 * PAGE, memory)


def test_files_on_no_local_disk_are_read_through_the_cache(
    path: Path, memory: memoryview, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, "major", lambda _device: 0)
    with File(path) as file:
        assert not file.is_direct
        assert file.read(5, 3 * PAGE, memory) == path.read_bytes()[5 : 3 * PAGE]


@pytest.mark.parametrize("prepare", [forget, lambda _: None], ids=["disk", "cached"])
def test_a_file_that_has_become_shorter_is_an_error(
    path: Path, memory: memoryview, prepare: Callable[[Path], None]
) -> None:
    with File(path) as file:
        os.truncate(path, 2 * PAGE + 10)
        prepare(path)
        assert len(file.read(0, 2 * PAGE + 10, memory)) == 2 * PAGE + 10
        for begin, end in [(PAGE, 2 * PAGE + 11), (30 * PAGE, 31 * PAGE)]:
            with pytest.raises(OSError, match="the file has become shorter"):
                file.read(begin, end, memory)


def _flags(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_GETFL)
