"""Which of a source's files make up the checkpoint, and whether their names may be written. Pure.

Weights in safetensors, configuration, tokenizer and chat templates; never anything that could run. The surprising idea:
a name that tries to lead somewhere else condemns the whole listing, even when the file would not have been wanted:
no honest server sends one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from capstan_fetch.errors import SourceError, UnsafeName

MAX_FILES: Final = 4096
_SUFFIXES: Final = frozenset({".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken"})
# The one folder below the top that an engine reads.
_TEMPLATES: Final = "additional_chat_templates"
# A leading letter, digit or underscore: no hidden file, no option, nothing that is special to a shell or a URL.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=@-]{0,199}")
_SHOWN: Final = 80


@dataclass(frozen=True)
class RemoteFile:
    """One file as its source lists it. `version` changes when the content does."""

    path: str
    size: int
    version: str
    sha256: str | None = None
    git_sha1: str | None = None
    """Git's own name of the content, for files that lie in the repository itself."""


@dataclass(frozen=True)
class Listing:
    """What a source holds. `commit` is the state that was listed, where the source has such a notion."""

    files: tuple[RemoteFile, ...]
    commit: str | None = None

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self.files)


def check_name(path: str) -> None:
    """Raises `UnsafeName` when joining `path` to a directory could lead out of it, or mean two things at once."""
    segments = path.split("/")
    if (
        path.startswith(("/", "~"))
        or "\\" in path
        or any(segment in ("", ".", "..") or segment.isspace() for segment in segments)
        or not path.isprintable()
        or len(path.encode("utf-8", "replace")) > 1024
        or re.match(r"[A-Za-z]:", path)
    ):
        raise UnsafeName(f"the source lists a file named {shown(path)}; no checkpoint needs one, so nothing is fetched")


def is_wanted(path: str) -> bool:
    """Whether the file belongs to a checkpoint. The name must have passed `check_name`."""
    parent, name = PurePosixPath(path).parent.as_posix(), PurePosixPath(path).name
    if name.startswith("."):
        return False
    if parent == _TEMPLATES:
        return name.endswith(".jinja")
    return parent == "." and PurePosixPath(path).suffix in _SUFFIXES


def checkpoint_files(listed: Sequence[RemoteFile], source: str) -> tuple[RemoteFile, ...]:
    """The files to fetch, sorted by path. Raises `UnsafeName` or `SourceError`.

    Where weights lie twice, sharded for most readers (`model*.safetensors`) and whole for one of them, only the former
    are taken.
    """
    for file in listed:
        check_name(file.path)
    wanted = [file for file in listed if is_wanted(file.path)]
    for file in wanted:
        if not all(_PLAIN.fullmatch(segment) for segment in file.path.split("/")):
            raise UnsafeName(
                f"{source} lists {shown(file.path)}; rename it with letters, digits, '.', '_' and '-' only"
            )
    if len({file.path.casefold() for file in wanted}) != len(wanted):
        raise UnsafeName(f"{source} lists two files whose names differ in case at most; rename one")
    if any(file.path.startswith("model") and file.path.endswith(".safetensors") for file in wanted):
        wanted = [f for f in wanted if f.path.startswith("model") or not f.path.endswith(".safetensors")]
    names = {file.path for file in wanted}
    if "config.json" not in names:
        raise SourceError(f"spec.model.source.uri: {source} has no config.json; name the directory of a checkpoint")
    if not any(name.endswith(".safetensors") for name in names):
        raise SourceError(
            f"spec.model.source.uri: {source} has no *.safetensors; other formats can run code when they are read: "
            f"convert the checkpoint, or name a repository that has been converted"
        )
    if len(wanted) > MAX_FILES:
        raise SourceError(f"spec.model.source.uri: {source} has {len(wanted)} files, more than the {MAX_FILES} allowed")
    return tuple(sorted(wanted, key=lambda file: file.path))


def shown(path: str) -> str:
    """A foreign name, short and harmless in a log."""
    return ascii(path[:_SHOWN]) + ("…" if len(path) > _SHOWN else "")
