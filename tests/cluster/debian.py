"""Builds the local base images out of the packages of the Debian that this machine runs, without a registry.

The stand-in for the public bases of the Dockerfile. A base is one layer: packages are fetched by apt against an empty
system, and their files are copied straight into a tar with fixed times and owners. No package's script is run and no
file system is unpacked, so it takes seconds where a debootstrap takes minutes, and it yields what is wanted at run
time: Python, its libraries and certificates, and neither shell nor package manager. The little that the scripts would
have done and Python needs is written here.
"""

import io
import os
import subprocess
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.gobuild import BuildFailed

RUNTIME_PACKAGES = ("base-files", "ca-certificates", "libgomp1", "libstdc++6", "netbase", "python3", "tzdata")
BUILDER_PACKAGES = (*RUNTIME_PACKAGES, "python3-pip")

# Brought in for the sake of the scripts, which are not run.
_LEFT_OUT = {"bash", "coreutils", "dash", "debconf", "dpkg", "mawk", "openssl", "perl-base", "readline-common", "tar"}
_LEFT_OUT_FILES = ("usr/share/doc/", "usr/share/info/", "usr/share/lintian/", "usr/share/locale/", "usr/share/man/")
_LINKS = ("bin", "sbin", "lib", "lib64")
_FOLDERS = ("usr", *(f"usr/{link}" for link in _LINKS), "etc", "etc/ssl", "etc/ssl/certs", "tmp")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/tmp:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_CERTIFICATES = "usr/share/ca-certificates/"


def fetch_packages(names: Iterable[str], folder: Path) -> tuple[Path, ...]:
    """Fetch Debian packages with all that they depend on into `folder`; returns the files, in the order of names.

    Raises BuildFailed with apt's own words.
    """
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    status = folder / "status"
    status.write_text("")
    command = (
        "apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", "--download-only",
        f"--option=Dir::State::status={status}", f"--option=Dir::Cache::archives={folder}",
        "--option=Debug::NoLocking=1", *names,
    )  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BuildFailed(
            "base images are built from Debian packages and there is no apt-get here: start Docker"
        ) from error
    except subprocess.CalledProcessError as error:
        raise BuildFailed(
            f"apt-get cannot fetch {' '.join(names)} (is `apt-get update` needed?):\n{error.stderr}"
        ) from error
    return tuple(sorted(folder.glob("*.deb")))


def write_layer(packages: Iterable[Path], layer: Path) -> None:
    """Write the packages' files as one layer, the same bytes for the same packages."""
    certificates: list[bytes] = []
    with tarfile.open(layer, "w") as target:
        for name in _FOLDERS:
            _add_folder(target, name, mode=0o1777 if name == "tmp" else 0o755)
        for name in _LINKS:
            _add_link(target, name, f"usr/{name}")
        written = {*_FOLDERS, *_LINKS, *_FILES}
        for package in packages:
            if package.name.partition("_")[0] in _LEFT_OUT:
                continue
            with _unpacked(package) as files:
                for member in files:
                    _copy(files, member, target, written, certificates)
        for name, text in _FILES.items():
            _add_file(target, name, text.encode())
        _add_file(target, "etc/ssl/certs/ca-certificates.crt", b"".join(certificates))


def image_config(user: str) -> dict[str, Any]:
    """The image configuration of a base, all but its layer."""
    environment = ["PATH=/usr/local/bin:/usr/bin", "LANG=C.UTF-8", "SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"]
    return {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine),
        "os": "linux",
        "config": {"Env": environment, "User": user},
        "history": [{"created_by": "Debian packages"}],
    }


@contextmanager
def _unpacked(package: Path) -> Iterator[tarfile.TarFile]:
    """The files of a package, as a stream."""
    with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", str(package)), stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as files:
            yield files
        assert process.stdout is not None
        process.stdout.read()
    if process.returncode != 0:
        raise BuildFailed(f"{package} cannot be unpacked: dpkg-deb ended with status {process.returncode}")


def _copy(
    files: tarfile.TarFile,
    member: tarfile.TarInfo,
    target: tarfile.TarFile,
    written: set[str],
    certificates: list[bytes],
) -> None:
    name = _merged(member.name.removeprefix(".").strip("/"))
    if not name or name in written or (name.startswith(_LEFT_OUT_FILES) and not name.endswith("/copyright")):
        return
    content = files.extractfile(member) if member.isreg() else None
    if content is not None and name.startswith(_CERTIFICATES):
        raw = content.read()
        certificates.append(raw)
        content = io.BytesIO(raw)
    written.add(name)
    member.name = name
    if member.islnk():
        member.linkname = _merged(member.linkname.removeprefix("./"))
    _plain(member)
    target.addfile(member, content)


def _merged(name: str) -> str:
    """Debian's packages may still say /lib where the system has /usr/lib; a link there must not become a folder."""
    return f"usr/{name}" if name.partition("/")[0] in _LINKS else name


def _plain(member: tarfile.TarInfo) -> None:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""


def _add_folder(target: tarfile.TarFile, name: str, mode: int = 0o755) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    target.addfile(member)


def _add_link(target: tarfile.TarFile, name: str, to: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, to
    target.addfile(member)


def _add_file(target: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    target.addfile(member, io.BytesIO(content))
