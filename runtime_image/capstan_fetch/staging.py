"""The disk: an unfinished checkpoint beside the place of the finished one, and the rename between the two.

Three names in the cache's directory: `NAME` is the finished checkpoint, `.NAME.partial` what has come so far, and
`.NAME.lock` is held by whoever writes. The surprising idea: nothing has to be cleaned up after a kill. The lock ends
with its process, the partial files say by their length where to go on, and a `NAME` that exists is complete.
"""

import asyncio
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capstan_fetch.errors import Infeasible, SourceError
from capstan_fetch.listing import RemoteFile
from capstan_fetch.manifest import FILE_NAME, Manifest
from capstan_fetch.progress import amount

_PLAN: Final = ".capstan-plan.json"
_MAX_PLAN_BYTES: Final = 4 << 20
_LOCK_POLL_S: Final = 1.0
# For the manifest, directories, and what a file system keeps for itself.
_SLACK_BYTES: Final = 64 << 20


class _Plan(BaseModel):
    """What the partial files are parts of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: Annotated[dict[str, str], Field(max_length=100_000)]


class Staging:
    """The place of one checkpoint. Blocking: call it from a thread where many bytes are moved."""

    def __init__(self, destination: Path) -> None:
        self.destination = destination
        self.partial = destination.parent / f".{destination.name}.partial"
        self._lock = destination.parent / f".{destination.name}.lock"

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Alone with this checkpoint, among all processes that share the directory. Raises `SourceError`."""
        try:
            self.destination.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise _disk_error(error, self._lock) from None
        try:
            while not _try_lock(descriptor, self._lock):  # noqa: ASYNC110 - no event tells what another process does
                await asyncio.sleep(_LOCK_POLL_S)
            yield
        finally:
            os.close(descriptor)

    def resume(self, files: Sequence[RemoteFile]) -> int:
        """Make the partial directory ready for these files; returns the bytes of them that are there already.

        What is left of other files, or of other versions, goes.
        """
        try:
            if self.partial.is_symlink() or (self.partial.exists() and not self.partial.is_dir()):
                self.partial.unlink()
            self.partial.mkdir(exist_ok=True)
            before = self._plan()
            wanted = {file.path: file for file in files}
            for path in sorted(self.partial.rglob("*"), reverse=True):
                name = path.relative_to(self.partial).as_posix()
                if stat.S_ISDIR(path.lstat().st_mode):
                    if not any(path.iterdir()):
                        path.rmdir()
                elif name != _PLAN and not _is_part_of(path, wanted.get(name), before.get(name)):
                    path.unlink()
            self._write_durably(_PLAN, _Plan(versions={file.path: file.version for file in files}).model_dump_json())
            return sum(self.size(file) for file in files)
        except OSError as error:
            raise _disk_error(error, self.partial) from None

    def check_room(self, missing_bytes: int) -> None:
        """Raises `Infeasible` when the disk cannot take so many bytes more."""
        disk = os.statvfs(self.partial)
        free = disk.f_bavail * disk.f_frsize
        if missing_bytes and missing_bytes + _SLACK_BYTES > free:
            raise Infeasible(
                f"spec.model.cache: the checkpoint needs {amount(missing_bytes + _SLACK_BYTES)} more and "
                f"{self.destination.parent} has {amount(free)} free; name a larger claim in spec.model.cache.claimName"
            )

    def size(self, file: RemoteFile) -> int:
        """Bytes of the file that are here."""
        try:
            return (self.partial / file.path).lstat().st_size
        except FileNotFoundError:
            return 0

    def open(self, file: RemoteFile) -> int:
        """A descriptor at the end of what is there. Raises `SourceError` when that is anything but our own file."""
        path = self.partial / file.path
        try:
            path.parent.mkdir(exist_ok=True)
            if path.parent.is_symlink():
                raise SourceError(f"{path.parent} is a link, which the fetcher never makes; remove it")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise _disk_error(error, path) from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            os.close(descriptor)
            raise SourceError(f"{path} is a link to something else, which the fetcher never makes; remove it")
        return descriptor

    def append(self, descriptor: int, data: bytes) -> None:
        """Write all of `data`. Raises `Infeasible` when the disk is full."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(descriptor, view) :]
        except OSError as error:
            raise _disk_error(error, self.partial) from None

    def forget(self, file: RemoteFile) -> None:
        """Begin the file anew."""
        (self.partial / file.path).unlink(missing_ok=True)

    def publish(self, manifest: Manifest) -> None:
        """Give the partial directory its name, complete with its manifest and safe from a power cut."""
        try:
            for path in manifest.files:
                _sync(self.partial / path)
            self._write_durably(FILE_NAME, manifest.model_dump_json(indent=2))
            (self.partial / _PLAN).unlink(missing_ok=True)
            for folder in {(self.partial / path).parent for path in manifest.files} | {self.partial}:
                _sync(folder)
            self.partial.rename(self.destination)
            _sync(self.destination.parent)
        except OSError as error:
            raise _disk_error(error, self.destination) from None

    def discard(self) -> None:
        """Remove what is unfinished."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def remove_finished(self) -> None:
        """Remove a checkpoint that is not what its manifest says. Raises `SourceError` when it was never ours."""
        if not self.destination.exists() and not self.destination.is_symlink():
            return
        if self.destination.is_symlink() or not (self.destination / FILE_NAME).is_file():
            raise SourceError(f"{self.destination} was not made by the fetcher; move it away, or name another cache")
        # Renamed first: nobody must see a directory of that name that is half gone.
        self.discard()
        try:
            self.destination.rename(self.partial)
        except OSError as error:
            raise _disk_error(error, self.destination) from None
        self.discard()

    def _plan(self) -> Mapping[str, str]:
        try:
            descriptor = os.open(self.partial / _PLAN, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                return _Plan.model_validate_json(file.read(_MAX_PLAN_BYTES)).versions
        except (OSError, ValidationError):
            return {}

    def _write_durably(self, name: str, text: str) -> None:
        temporary = self.partial / f"{name}.new"
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        with open(descriptor, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.partial / name)


def _is_part_of(path: Path, file: RemoteFile | None, version_before: str | None) -> bool:
    found = path.lstat()
    return (
        file is not None
        and file.version == version_before
        and stat.S_ISREG(found.st_mode)
        and found.st_nlink == 1
        and found.st_size <= file.size
    )


def _try_lock(descriptor: int, path: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise SourceError(
            f"spec.model.cache: {path.parent} is on a file system without locks ({error.strerror}); name a claim of "
            f"another storage class"
        ) from None
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, path: Path) -> SourceError | Infeasible:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return Infeasible(
            f"spec.model.cache: the disk of {path.parent} is full ({error.strerror}); name a larger claim in "
            f"spec.model.cache.claimName"
        )
    return SourceError(f"spec.model.cache: {path}: {error.strerror}; the cache must be writable for the fetcher's user")
