"""What a fetched checkpoint is: its files with their SHA-256, and the one digest that pins them all.

Knows files, no network. The surprising idea: the manifest lies in the directory that it describes and takes part in
the same rename, so a directory that has one is complete, whoever was killed when.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from capstan_fetch.errors import SourceError
from capstan_fetch.listing import RemoteFile, check_name, checkpoint_files

FILE_NAME: Final = ".capstan-manifest.json"
_CHUNK: Final = 4 << 20
_MAX_BYTES: Final = 4 << 20
_THREADS: Final = 4

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(BaseModel):
    """One file of a manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(BaseModel):
    """Everything that is known of a finished checkpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    revision: str | None = None
    commit: str | None = None
    digest: str
    files: dict[str, FileEntry]

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The manifest in `directory`; None when there is none or it is not one of ours."""
        try:
            descriptor = os.open(directory / FILE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            raw = file.read(_MAX_BYTES)
        try:
            manifest = cls.model_validate_json(raw)
            for path in manifest.files:
                check_name(path)
        except (ValidationError, SourceError):
            return None
        return manifest

    def answers(self, uri: str, revision: str | None, digest: str | None) -> bool:
        """Whether this is what is asked for. What a branch names is not asked again: every replica gets the same."""
        return self.uri == uri and self.revision == revision and digest in (None, self.digest)

    def holds(self, directory: Path, on_bytes: Callable[[int], None]) -> bool:
        """Whether exactly these files lie in `directory`, byte by byte. Reads them all."""
        try:
            present = {path.relative_to(directory).as_posix() for path in _regular_files(directory)} - {FILE_NAME}
            return hashes(directory, sorted(present), on_bytes) == {p: e.sha256 for p, e in self.files.items()}
        except (OSError, SourceError):
            return False


def digest(sha256s: Mapping[str, str]) -> str:
    """The pin of a checkpoint, from the SHA-256 of its files by path: the hash of the lines that `sha256sum` prints."""
    lines = sorted(f"{sha256}  {path}\n" for path, sha256 in sha256s.items())
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_of_directory(directory: Path) -> str:
    """The pin of the checkpoint in `directory`, which may be a download of another tool.

    Counts the files that would be fetched from a source that has the same. Raises `OSError` or `SourceError`.
    """
    paths = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    files = checkpoint_files([RemoteFile(path, 0, "") for path in paths], str(directory))
    return digest(hashes(directory, [file.path for file in files], follow_links=True))


def hashes(
    directory: Path,
    paths: list[str],
    on_bytes: Callable[[int], None] = lambda _: None,
    *,
    follow_links: bool = False,
) -> dict[str, str]:
    """SHA-256 of each file. Several are read at once: hashing one is slower than reading it."""
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda path: hash_file(directory / path, on_bytes, follow_links=follow_links), paths)
        return dict(zip(paths, found, strict=True))


def hash_file(path: Path, on_bytes: Callable[[int], None] = lambda _: None, *, follow_links: bool = False) -> str:
    """SHA-256 of a file in hex. Raises `OSError`, for a symbolic link too unless it is to be followed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW))
    running = hashlib.sha256()
    with open(descriptor, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            running.update(chunk)
            on_bytes(len(chunk))
    return running.hexdigest()


def git_sha1(path: Path) -> str:
    """Git's name of the content: SHA-1 over `blob SIZE NUL` and the bytes. For small files; Git's choice, not ours."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _regular_files(directory: Path) -> list[Path]:
    """All files below `directory`. Raises `SourceError` at anything that is neither a plain file nor a directory."""
    found = []
    for root, folders, names in os.walk(directory, followlinks=False):
        for name in (*folders, *names):
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found.append(path)
            elif not stat.S_ISDIR(mode):
                raise SourceError(f"{path} is neither a file nor a directory")
    return found
