"""Bytes are those of the file, whether the page cache holds them, a disk is asked past it, or that is refused."""

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

from capstan_engine.models import disk
from capstan_engine.models.disk import PAGE, File

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing else has O_DIRECT and posix_fadvise")
SIZE = 40 * PAGE + 123
PIECES = [(0, 1), (0, PAGE), (7, 9), (PAGE - 1, PAGE + 1), (3 * PAGE, 5 * PAGE), (5, 30 * PAGE + 7), (SIZE - 1, SIZE)]


@pytest.fixture
def memory() -> memoryview:
    held = torch.zeros(SIZE + 3 * PAGE, dtype=torch.uint8)
    return held.numpy().data[-held.data_ptr() % PAGE :]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is taken to lie on a local disk, and not where temporary files may lie in memory."""
    monkeypatch.setattr(disk.os, "major", lambda _device: 8)
    with TemporaryDirectory(dir="/var/tmp") as directory:
        written = Path(directory, "file")
        written.write_bytes(os.urandom(SIZE))
        yield written


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each reading went past the page cache."""
    found, preadv = list[bool](), os.preadv

    def watched(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        found.append(is_direct(descriptor))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(disk.os, "preadv", watched)
    return found


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def forget(path: Path, offset: int = 0, length: int = 0) -> None:
    """Have the page cache hold nothing of that part."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def half_forgotten(path: Path) -> None:
    forget(path, 8 * PAGE, 8 * PAGE)


@pytest.mark.parametrize("prepare", [forget, half_forgotten, lambda _: None], ids=["disk", "both", "cached"])
def test_pieces_are_those_of_the_file(path: Path, memory: memoryview, prepare: Callable[[Path], None]) -> None:
    expected = path.read_bytes()
    for begin, end in PIECES:
        prepare(path)
        with File(path) as file:
            assert file.read(begin, end, memory) == expected[begin:end]


def test_what_is_not_cached_is_read_past_the_page_cache_and_the_rest_from_there(
    path: Path, memory: memoryview, asked: list[bool]
) -> None:
    with File(path) as file:
        file.read(0, 4 * PAGE, memory)
        forget(path)
        file.read(0, 4 * PAGE, memory)
        # It was not kept: so the next reading is past the cache again.
        file.read(0, 4 * PAGE, memory)
    assert asked == [False, True, True]


@pytest.mark.parametrize("refusal", [errno.EINVAL, errno.EIO])
def test_a_disk_that_cannot_be_read_directly_is_read_as_others_are(
    path: Path, memory: memoryview, refusal: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def refused(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if is_direct(descriptor):
            raise OSError(refusal, os.strerror(refusal))
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(disk.os, "preadv", refused)
    forget(path)
    with File(path) as file:
        if refusal == errno.EINVAL:
            assert file.read(5, 3 * PAGE, memory) == path.read_bytes()[5 : 3 * PAGE]
        else:
            with pytest.raises(OSError, match="Input/output"):
                file.read(5, 3 * PAGE, memory)


def test_files_on_no_local_disk_are_read_through_the_cache(
    path: Path, memory: memoryview, asked: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk.os, "major", lambda _device: 0)
    forget(path)
    with File(path) as file:
        assert file.read(5, 3 * PAGE, memory) == path.read_bytes()[5 : 3 * PAGE]
    assert asked == [False]


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
