"""Builds the images from the Dockerfile and gives them to a cluster: `PYTHONPATH=tests python -m cluster.images`.

buildah builds, without a daemon and without a registry, on bases made of this machine's Debian packages (debian.py);
where Docker answers, it builds on the Dockerfile's own public bases. All is kept in the cache folder, so the second
build costs seconds: torch is a layer that changes with the lock alone. An image's tag is taken from its content; a
cluster can never run an older one by the same name.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import IO, Final, Protocol

from cluster import debian
from cluster.cluster import Cluster
from cluster.gobuild import BuildFailed, Progress, cache_folder, exclusive
from cluster.layout import Layout

ROOT: Final = Path(__file__).parents[2]
_DOCKERFILE = "runtime_image/Dockerfile"
# Targets of the Dockerfile, and what the images are called.
NAMES: Final = ("capstan", "capstan-engine")
COMPILER_PACKAGES: Final = ("base-files", "g++", "python3-dev")
# What builds them where Docker does not answer; each is a Debian package of that name.
PROGRAMS: Final = ("buildah", "skopeo")
# Held by who builds and by who reads what was built: a build throws away what it replaces.
LOCK: Final = "lock"
# `cpu` takes PyTorch's own CPU build, where its index can be reached: a sixth of the size.
TORCH_VARIABLE: Final = "CAPSTAN_TORCH"

# Larger blobs are shared with a node that can, and not copied to it.
_SHARED_BYTES: Final = 16 << 20
_CERTIFICATES: Final = Path("/etc/ssl/certs/ca-certificates.crt")
_PIP_CONFIGURATION: Final = Path("/etc/pip.conf")


@dataclass(frozen=True)
class Image:
    """A built image. `write` puts it into a stream as an archive, without the blobs that the reader has already."""

    name: str
    size: int
    blobs: Mapping[str, Path]
    """By digest; empty where the builder keeps them to itself."""
    write: Callable[[IO[bytes], Collection[str]], None]
    in_place: Callable[[], AbstractContextManager[None]]
    """Keeps it there while its blobs are read; raises BuildFailed when another build has replaced it."""


class Builder(Protocol):
    """What turns a target of the Dockerfile into an image."""

    def build(self, name: str) -> Image: ...


@dataclass
class Loader:
    """Gives images to one cluster, and remembers what it has had."""

    cluster: Cluster
    _known: set[str] = field(default_factory=set)

    def load(self, image: Image, progress: Progress) -> None:
        """Give every node the image. Raises what the cluster raises, and BuildFailed when it is there no more."""
        started_s = time.monotonic()
        with image.in_place():
            size = self._hand_over(image)
        self._known.update(image.blobs)
        took_s = time.monotonic() - started_s
        progress(f"loaded {image.name} in {took_s:.1f} s, {size / 1e6:,.0f} MB of it as an archive")

    def _hand_over(self, image: Image) -> int:
        """Returns how many bytes were copied."""
        for digest, path in image.blobs.items():
            large = path.stat().st_size >= _SHARED_BYTES
            if large and digest not in self._known and self.cluster.share_blob(path, digest):
                self._known.add(digest)
        with tempfile.NamedTemporaryFile(dir=cache_folder(), suffix=".tar") as archive:
            image.write(archive, frozenset(self._known))
            archive.flush()
            self.cluster.load_image(Path(archive.name))
            return archive.tell()


def build(progress: Progress) -> dict[str, Image]:
    """Build both images, by name. Raises BuildFailed with the end of what the builder said."""
    folder = cache_folder() / "images"
    with exclusive(folder / LOCK):
        builder: Builder = Docker() if docker_answers() else Buildah.prepared(folder, progress)
        built = {}
        for name in NAMES:
            started_s = time.monotonic()
            built[name] = image = builder.build(name)
            took_s = time.monotonic() - started_s
            progress(f"built {image.name}, {image.size / 1e6:,.0f} MB, in {took_s:.1f} s")
    return built


@dataclass(frozen=True)
class Buildah:
    """Builds in a storage of its own, isolated by chroot alone: that works where nothing may make namespaces."""

    folder: Path
    arguments: Mapping[str, str]
    progress: Progress

    @classmethod
    def prepared(cls, folder: Path, progress: Progress) -> "Buildah":
        """With the local bases built. Raises BuildFailed where a program or package is missing."""
        if lacking := [program for program in PROGRAMS if shutil.which(program) is None]:
            raise BuildFailed(f"images are built by Docker, or by buildah and skopeo: install {' and '.join(lacking)}")
        self = cls(folder, {"TORCH": os.environ.get(TORCH_VARIABLE, "cuda")}, progress)
        bases = {
            "RUNTIME": self._base("runtime", debian.RUNTIME_PACKAGES, user="65532:65532"),
            "BUILDER": self._base("builder", debian.BUILDER_PACKAGES, user="0:0"),
            "COMPILER": self._base("compiler", COMPILER_PACKAGES, user="0:0"),
        }
        return cls(folder, {**self.arguments, **bases}, progress)

    def build(self, name: str) -> Image:
        """Build and export. buildah 1.28 cannot mount from a stage that it took from its cache, only from an image."""
        tools, layout = "localhost/capstan-tools", Layout(self.folder / "layout")
        try:
            self._build("tools", tools)
            id_ = self._build(name, f"localhost/{name}", f"--build-context=tools=container-image://{tools}")
            # It leaves the container behind that it mounted from.
            self._run(*self._buildah, "rm", "--all")
            # Uncompressed, a layer keeps the digest it has in the storage: what is there already is not copied again.
            self._run(
                "skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers",
                self._stored(f"localhost/{name}"), f"oci:{layout.folder}:{name}",
            )  # fmt: skip
        finally:
            # The storage's own mount; where there is none, there is nothing to do.
            subprocess.run(("umount", self.folder / "storage" / "overlay"), capture_output=True, check=False)
        layout.prune()
        full_name, digests = f"capstan.dev/{name}:{id_[:12]}", layout.blobs(name)
        return Image(
            full_name,
            layout.size(name),
            {digest: layout.path(digest) for digest in digests},
            lambda stream, without: layout.write_archive(name, full_name, stream, without),
            partial(kept, layout, name, digests, self.folder / LOCK),
        )

    def _build(self, target: str, tag: str, *options: str) -> str:
        """Returns the image's id."""
        mounts = [path for path in (_CERTIFICATES, _PIP_CONFIGURATION) if path.exists()]
        with tempfile.NamedTemporaryFile() as id_file:
            self._run(
                *self._buildah, "build", "--layers", "--pull-never", "--isolation=chroot", "--network=host",
                f"--file={_DOCKERFILE}", f"--target={target}", f"--tag={tag}", f"--iidfile={id_file.name}", *options,
                *(f"--build-arg={key}={value}" for key, value in self.arguments.items()),
                # This machine's certificates and index reach the build as mounts: no image ever holds them.
                *(f"--volume={path}:{path}:ro" for path in mounts),
                ".",
            )  # fmt: skip
            return Path(id_file.name).read_text().strip().removeprefix("sha256:")

    def _base(self, name: str, packages: tuple[str, ...], user: str) -> str:
        """The name of the local base, made anew when what it is made of has changed."""
        made_of = (repr(packages), Path(debian.__file__).read_text(), Path("/etc/os-release").read_text(), user)
        tag = f"localhost/capstan-{name}:{sha256(''.join(made_of).encode()).hexdigest()[:12]}"
        if subprocess.run((*self._buildah, "inspect", "--type=image", tag), capture_output=True).returncode == 0:
            return tag
        started_s = time.monotonic()
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            layer = Path(scratch, "layer.tar")
            debian.write_layer(debian.fetch_packages(packages, Path(scratch, "packages")), layer)
            layout = Layout(Path(scratch, "layout"))
            layout.store(name, layer, debian.image_config(user))
            self._run("skopeo", "copy", "--quiet", f"oci:{layout.folder}:{name}", self._stored(tag))
        self.progress(f"built the base {tag} in {time.monotonic() - started_s:.1f} s")
        return tag

    def _stored(self, tag: str) -> str:
        """An image of the storage, as skopeo names it."""
        return f"containers-storage:[overlay@{self.folder / 'storage'}+{self.folder / 'run'}]{tag}"

    @property
    def _buildah(self) -> tuple[str, ...]:
        return ("buildah", f"--root={self.folder / 'storage'}", f"--runroot={self.folder / 'run'}")

    def _run(self, *command: str) -> str:
        # buildah keeps the cache mounts of a build below TMPDIR.
        return _run(*command, environment={"TMPDIR": str(self.folder)})


@dataclass(frozen=True)
class Docker:
    """Builds with the Docker that answers, on the Dockerfile's public bases."""

    def build(self, name: str) -> Image:
        torch = os.environ.get(TORCH_VARIABLE, "cuda")
        id_ = _run(
            "docker", "build", "--quiet", f"--file={_DOCKERFILE}", f"--target={name}", f"--build-arg=TORCH={torch}", "."
        ).strip()  # fmt: skip
        full_name = f"capstan.dev/{name}:{id_.removeprefix('sha256:')[:12]}"
        _run("docker", "tag", id_, full_name)
        size = int(json.loads(_run("docker", "image", "inspect", full_name))[0]["Size"])

        def write(stream: IO[bytes], _: Collection[str]) -> None:
            subprocess.run(("docker", "save", full_name), stdout=stream, check=True)

        return Image(full_name, size, {}, write, nullcontext)


@contextmanager
def kept(layout: Layout, name: str, digests: tuple[str, ...], lock: Path) -> Iterator[None]:
    """Keep builds away while an image is read. Raises BuildFailed when it consists of other `digests` by now."""
    with exclusive(lock):
        if layout.blobs(name) != digests:
            raise BuildFailed(f"the image {name} was replaced by another build meanwhile: run it again")
        yield


def docker_answers() -> bool:
    return shutil.which("docker") is not None and (
        subprocess.run(("docker", "info"), capture_output=True, timeout=10).returncode == 0
    )


def _run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
        raise BuildFailed(f"{' '.join(command[:2])} ended with status {done.returncode}:\n{said}")
    return done.stdout


def main() -> int:
    """Build both images, say what they are called, and write archives where asked."""
    parser = argparse.ArgumentParser(prog="python -m cluster.images", description="Build Capstan's images.")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="write each image to FOLDER/NAME.tar as well")
    arguments = parser.parse_args()
    try:
        built = build(lambda line: print(f"images: {line}", file=sys.stderr, flush=True))
    except BuildFailed as failure:
        print(f"images: {failure}", file=sys.stderr)
        return 1
    for name, image in built.items():
        print(image.name)
        if arguments.archives is not None:
            with image.in_place(), (arguments.archives / f"{name}.tar").open("wb") as archive:
                image.write(archive, frozenset())
    return 0


if __name__ == "__main__":
    sys.exit(main())
