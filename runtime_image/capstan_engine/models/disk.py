"""Bytes of files: from the page cache what is there, everything else past it.

Knows nothing of tensors. The surprising idea: what is read once need not be kept, and a processor takes longer to find
pages to keep it in than a fast disk to send it (open(2), O_DIRECT). A page cache that holds it already is faster still.
"""

import ctypes
import errno
import mmap
import os
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np

PAGE: Final = mmap.PAGESIZE
"""What memory that is read into has to begin with, and how much more of it than is asked for is needed on each side."""


class File:
    """A file that is read in pieces. Raises `OSError`, as all that is called here does."""

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            self._plain = opened.enter_context(path.open("rb", buffering=0)).fileno()
            self._direct = _opened_direct(path, self._plain)
            if self._direct is not None:
                opened.callback(os.close, self._direct)
                self._cached = _Cached(self._plain)
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def read(self, begin: int, end: int, memory: memoryview) -> memoryview:
        """The bytes from `begin` to `end`, in `memory`, which begins with a page and has room for two more."""
        first, last = begin // PAGE * PAGE, -(-end // PAGE) * PAGE
        num_read = 0
        while num_read < end - first:
            num_more = self._read_some(first + num_read, memory[num_read : last - first])
            if not num_more:
                raise OSError("the file has become shorter")
            num_read += num_more
        return memory[begin - first : end - first]

    def _read_some(self, begin: int, memory: memoryview) -> int:
        if self._direct is not None and not self._cached.holds(begin, begin + len(memory)):
            try:
                return os.preadv(self._direct, [memory], begin)
            except OSError as error:
                # What was opened for it may still refuse it; what else is wrong is wrong for both.
                if error.errno != errno.EINVAL:
                    raise
        return os.preadv(self._plain, [memory], begin)


class _Cached:
    """What the page cache holds of a file."""

    def __init__(self, descriptor: int) -> None:
        # Nothing is read through it: the system is asked about addresses (mincore(2)).
        self._mapped = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        self._address = np.frombuffer(self._mapped, np.uint8).ctypes.data
        self._library = ctypes.CDLL(None)

    def holds(self, begin: int, end: int) -> bool:
        """All pages from the one that begins there. True for who may not know, as this is the more careful way."""
        num_bytes = min(end, len(self._mapped)) - begin
        there = ctypes.create_string_buffer(max(0, -(-num_bytes // PAGE)))
        arguments = ctypes.c_void_p(self._address + begin), ctypes.c_size_t(max(0, num_bytes)), there
        return self._library.mincore(*arguments) != 0 or b"\0" not in there.raw


def _opened_direct(path: Path, plain: int) -> int | None:
    """Past the page cache; None where it makes reading slower or cannot be."""
    # No local disk: there the system reads ahead, and this would wait for one answer after the other.
    if not hasattr(os, "O_DIRECT") or os.major(os.fstat(plain).st_dev) == 0:
        return None
    # The file itself has just been opened: what can fail is this way of reading it.
    with suppress(OSError):
        return os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    return None
