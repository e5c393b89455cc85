"""Builds the cluster's programs from the Go modules pinned under `gomod/`, once per version.

Each folder of `gomod/` is a module of ours whose only content is a `tool` block: the programs of one upstream project.
The upstream versions and the hashes of everything they import are in its go.mod and go.sum, so the folder's own digest
names the build, and a changed pin can never meet a stale program. Nothing here knows how the programs are run.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GOMOD = Path(__file__).parent / "gomod"
PROGRESS_EVERY_S = 15.0

Progress = Callable[[str], None]


class BuildFailed(Exception):
    """A program could not be built or fetched; the text ends with what the builder said."""


@dataclass(frozen=True)
class Upstream:
    """One upstream project: which module is pinned, and how it wants its version stamped in.

    `version_flags` are templates of linker flags: {version} with its `v`, {plain} without, {minor} the middle number.
    """

    name: str
    module: str
    version_flags: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return GOMOD / self.name

    @property
    def version(self) -> str:
        found = re.search(rf"{re.escape(self.module)} (v\S+)", self._go_mod)
        if found is None:
            raise BuildFailed(f"{self.folder / 'go.mod'} does not require {self.module}")
        return found[1]

    @property
    def tools(self) -> tuple[str, ...]:
        """The import paths in the go.mod's `tool` block or its one `tool` line."""
        block = re.search(r"^tool \(\n(.*?)^\)", self._go_mod, re.M | re.S)
        return tuple(block[1].split()) if block else tuple(re.findall(r"^tool (\S+)$", self._go_mod, re.M))

    @property
    def programs(self) -> tuple[str, ...]:
        """The file names of the built programs; a server at its module's root is named after the project."""
        return (self.name,) if len(self.tools) == 1 else tuple(tool.rsplit("/", 1)[1] for tool in self.tools)

    @property
    def linker_flags(self) -> str:
        plain = self.version.removeprefix("v")
        stamps = (
            f"-X {flag.format(version=self.version, plain=plain, minor=plain.split('.')[1])}"
            for flag in self.version_flags
        )
        return " ".join(("-s", "-w", *stamps))

    @property
    def digest(self) -> str:
        parts = (
            (self.folder / "go.mod").read_bytes(),
            (self.folder / "go.sum").read_bytes(),
            self.linker_flags.encode(),
        )
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]

    @property
    def _go_mod(self) -> str:
        return (self.folder / "go.mod").read_text()


_KUBERNETES_STAMPS = (
    "k8s.io/component-base/version.gitVersion={version}",
    "k8s.io/component-base/version.gitMajor=1",
    "k8s.io/component-base/version.gitMinor={minor}",
    "k8s.io/client-go/pkg/version.gitVersion={version}",
)
UPSTREAMS = {
    upstream.name: upstream
    for upstream in (
        Upstream("etcd", "go.etcd.io/etcd/server/v3"),
        Upstream("kubernetes", "k8s.io/kubernetes", _KUBERNETES_STAMPS),
        Upstream(
            "containerd",
            "github.com/containerd/containerd/v2",
            ("github.com/containerd/containerd/v2/version.Version={plain}",),
        ),
        Upstream("coredns", "github.com/coredns/coredns"),
        Upstream("kwok", "sigs.k8s.io/kwok"),
    )
}


def cache_folder() -> Path:
    """Where built and fetched programs are kept between runs: $CAPSTAN_CACHE, else ~/.cache/capstan."""
    return Path(os.environ.get("CAPSTAN_CACHE") or Path.home() / ".cache" / "capstan")


def build(names: Iterable[str], progress: Progress) -> dict[str, Path]:
    """Build what is missing and return program name → path. Several processes may call it at once: one builds."""
    programs: dict[str, Path] = {}
    for name in names:
        upstream = UPSTREAMS[name]
        target = cache_folder() / "bin" / f"{name}-{upstream.version}-{upstream.digest}"
        with exclusive(target.with_name(f"{target.name}.lock")):
            if not target.is_dir():
                _build_one(upstream, target, progress)
        programs |= {program: target / program for program in upstream.programs}
    return programs


def missing(names: Iterable[str]) -> list[str]:
    """Those of the named projects that the next `build` would have to compile."""
    ours = ((name, UPSTREAMS[name]) for name in names)
    return [n for n, u in ours if not (cache_folder() / "bin" / f"{n}-{u.version}-{u.digest}").is_dir()]


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold an advisory lock on a file, which the kernel lets go of however this process ends."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_one(upstream: Upstream, target: Path, progress: Progress) -> None:
    go = shutil.which("go")
    if go is None:
        raise BuildFailed(
            f"{upstream.name} {upstream.version} must be built and there is no `go` on the PATH: install Go 1.26"
        )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        output = Path(scratch, "out")
        output.mkdir()
        # A lone tool gets its name here: Go would call the program at a module's root `server` or the like.
        destination = output / upstream.name if len(upstream.tools) == 1 else f"{output}/"
        command = [
            go,
            "build",
            "-v",
            "-trimpath",
            "-mod=readonly",
            "-ldflags",
            upstream.linker_flags,
            "-o",
            str(destination),
        ]
        started_s = time.monotonic()
        progress(f"building {upstream.name} {upstream.version}: {', '.join(upstream.programs)}")
        environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
        call = [*command, *upstream.tools]
        with subprocess.Popen(call, cwd=upstream.folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
            said = _follow(process, upstream.name, started_s, progress)
        if process.returncode != 0:
            raise BuildFailed(f"go build of {upstream.name} {upstream.version} failed:\n" + "\n".join(said[-20:]))
        output.rename(target)
    progress(f"built {upstream.name} {upstream.version} in {time.monotonic() - started_s:.0f} s")


def _follow(process: "subprocess.Popen[str]", name: str, started_s: float, progress: Progress) -> list[str]:
    """Read what `go build -v` says, one package a line, and tell about it now and then."""
    assert process.stderr is not None
    said: list[str] = []
    told_s = started_s
    for line in process.stderr:
        said.append(line.rstrip())
        now_s = time.monotonic()
        if now_s - told_s >= PROGRESS_EVERY_S:
            progress(f"  {name}: {len(said)} packages compiled, {now_s - started_s:.0f} s")
            told_s = now_s
    return said
