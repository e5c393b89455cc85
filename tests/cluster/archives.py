"""Writes container images in pure Python, for the two that a node needs before anything can be built: one busybox.

A docker-archive with a single layer is three members of a tar. The pause image is the same busybox with a command that
waits for its end and reaps; nothing here knows how images are built from a Dockerfile.
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Sequence
from pathlib import Path

BUSYBOX_IMAGE = "capstan.dev/test/busybox:1"
PAUSE_IMAGE = "capstan.dev/test/pause:1"
# What images call the machines that the kernel names so.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
APPLETS = ("cat", "echo", "env", "hostname", "httpd", "id", "ls", "mkdir", "nslookup", "sh", "sleep", "touch", "true")
# `wait` returns at a signal, and reaps what the pod's other containers leave when they share its process namespace.
PAUSE_COMMAND = ("/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 86400 & wait; done")


def write_busybox_images(busybox: Path, target: Path) -> None:
    """Write a docker-archive with both images to `target`; `busybox` is a statically linked binary."""
    layer = _layer(busybox.read_bytes())
    configs = {
        BUSYBOX_IMAGE: _config(layer, ("/bin/sh",)),
        PAUSE_IMAGE: _config(layer, PAUSE_COMMAND),
    }
    manifest = [
        {"Config": f"{_sha256(config)}.json", "RepoTags": [name], "Layers": ["layer.tar"]}
        for name, config in configs.items()
    ]
    with tarfile.open(target, "w") as archive:
        _add(archive, "layer.tar", layer)
        for config in configs.values():
            _add(archive, f"{_sha256(config)}.json", config)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def _layer(busybox: bytes) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as layer:
        _add(layer, "bin/busybox", busybox, mode=0o755)
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        layer.addfile(temporary)
    return content.getvalue()


def _config(layer: bytes, command: Sequence[str]) -> bytes:
    config = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": list(command), "User": "65534:65534"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
        "history": [{"created_by": "capstan tests"}],
    }
    return json.dumps(config).encode()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    archive.addfile(member, io.BytesIO(content))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
