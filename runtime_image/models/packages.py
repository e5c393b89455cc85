"""The Debian packages whose documentation is the training text: which, under what licence, and how to fetch them.

This module knows packages and files; it does not know what is inside a page. Nothing is installed: a package is
downloaded as an archive and only the files that match its globs are unpacked.
"""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class CorpusError(RuntimeError):
    """The training text could not be fetched or read; the message says what to do."""


@dataclass(frozen=True)
class Package:
    """One source of text.

    `topic` is what a reader would call the subject ("PostgreSQL"); it is empty for dictionaries.
    `globs` are tar patterns of the wanted files, `licence` is what the package's copyright file states for them.
    """

    name: str
    topic: str
    licence: str
    globs: tuple[str, ...]

    @property
    def is_dictionary(self) -> bool:
        """Whether the files are a dictd dictionary rather than HTML pages."""
        return self.name.startswith("dict-")


PACKAGES = (
    Package("dict-foldoc", "", "GFDL-1.2+, no invariant sections", ("./usr/share/dictd/*",)),
    Package("dict-jargon", "", "public domain", ("./usr/share/dictd/*",)),
    Package(
        "python3.11-doc",
        "Python",
        "PSF-2.0",
        tuple(
            f"./usr/share/doc/python3.11/html/{part}/*.html"
            for part in ("tutorial", "howto", "library", "reference", "faq", "using", "extending")
        ),
    ),
    Package("postgresql-doc-15", "PostgreSQL", "PostgreSQL", ("./usr/share/doc/postgresql-doc-15/html/*.html",)),
    Package("git-doc", "Git", "GPL-2.0", ("./usr/share/doc/git-doc/*.html",)),
    Package(
        "debian-handbook", "Debian", "GPL-2.0+ or CC-BY-SA-3.0", ("./usr/share/doc/debian-handbook/html/en-US/*.html",)
    ),
    Package("debian-reference-en", "Debian", "GPL-2.0+", ("./usr/share/debian-reference/*.en.html",)),
    Package("debian-policy", "Debian", "GPL-2.0+", ("./usr/share/doc/debian-policy/policy.html/*.html",)),
    Package(
        "debian-faq",
        "Debian",
        "copies and changed versions under the same notice",
        ("./usr/share/doc/debian/FAQ/*.en.html",),
    ),
    Package("developers-reference", "Debian", "GPL-2.0+", ("./usr/share/developers-reference/*.html",)),
    Package(
        "python-django-doc",
        "Django",
        "BSD-3-Clause",
        tuple(
            f"./usr/share/doc/python-django-doc/html/{part}/*.html"
            for part in ("intro", "topics", "ref", "howto", "faq", "misc", "internals")
        ),
    ),
    Package(
        "python-sqlalchemy-doc",
        "SQLAlchemy",
        "MIT",
        tuple(
            f"./usr/share/doc/python-sqlalchemy-doc/html/{part}/*.html" for part in ("orm", "core", "tutorial", "faq")
        ),
    ),
    Package(
        "rust-doc",
        "Rust",
        "MIT or Apache-2.0",
        tuple(
            f"./usr/share/doc/rust-doc/html/{part}/*.html"
            for part in ("book", "reference", "nomicon", "rust-by-example", "rustc", "rustdoc", "edition-guide")
        ),
    ),
    Package("golang-1.19-doc", "Go", "BSD-3-Clause", ("./usr/share/doc/golang-1.19-doc/html/*.html",)),
    Package("sqlite3-doc", "SQLite", "public domain", ("./usr/share/doc/sqlite3/*.html",)),
    Package("apache2-doc", "the Apache HTTP server", "Apache-2.0", ("./usr/share/doc/apache2-doc/manual/en/*.html",)),
    Package("postfix-doc", "Postfix", "IPL-1.0 or EPL-2.0", ("./usr/share/doc/postfix/html/*.html",)),
    Package(
        "linux-doc-6.1",
        "the Linux kernel",
        "GPL-2.0",
        tuple(
            f"./usr/share/doc/linux-doc-6.1/html/{part}/*.html"
            for part in ("admin-guide", "process", "scheduler", "mm", "filesystems")
        ),
    ),
)


def fetch(package: Package, directory: Path) -> Path:
    """Download one package with apt into `directory` unless it is there already; return the archive's path.

    Raises `CorpusError` when apt does not know the package or cannot reach a mirror.
    """
    directory.mkdir(parents=True, exist_ok=True)
    found = sorted(directory.glob(f"{package.name}_*.deb"))
    if not found:
        _run([_tool("apt-get"), "download", package.name], package, cwd=directory)
        found = sorted(directory.glob(f"{package.name}_*.deb"))
    return found[-1]


def version(package: Package, archive: Path) -> str:
    """Return the version field of a Debian archive."""
    return _run([_tool("dpkg-deb"), "--field", str(archive), "Version"], package).decode().strip()


def unpack(package: Package, archive: Path, directory: Path) -> Iterator[Path]:
    """Unpack the wanted files of `archive` below `directory/<name>` and yield them in sorted order."""
    target = directory / package.name
    if not target.exists():
        # A half-unpacked folder must not pass for a whole one, so the name appears last.
        partial = target.with_name(f"{package.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        files = _run([_tool("dpkg-deb"), "--fsys-tarfile", str(archive)], package)
        _run([_tool("tar"), "-x", "-C", str(partial), "--wildcards", *package.globs], package, given=files)
        partial.rename(target)
    yield from sorted(path for path in target.rglob("*") if path.is_file() and not path.is_symlink())


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise CorpusError(f"{name} is not installed: the training text comes from Debian packages, so train on Debian")
    return path


def _run(command: list[str], package: Package, cwd: Path | None = None, given: bytes | None = None) -> bytes:
    done = subprocess.run(command, cwd=cwd, input=given, capture_output=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip()
        raise CorpusError(
            f"package {package.name}: {Path(command[0]).name} failed (try apt-get update first): {reason}"
        )
    return done.stdout
