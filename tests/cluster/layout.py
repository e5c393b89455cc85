"""A folder of container images as the OCI image layout describes it: blobs by their digest, and an index of names.

Images in one folder share the layers they have in common, so gigabytes lie there once. A node is given an image as a
tar of the folder that can leave out the layers which the node has already: a changed program then travels as a few
megabytes on top of the torch it had before.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
# containerd and Docker read the full name of an image from here; the standard's own annotation holds a tag.
_NAME = "io.containerd.image.name"
_TAG = "org.opencontainers.image.ref.name"


class Layout:
    """The images in `folder`, by the name each was stored under."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def blobs(self, name: str) -> tuple[str, ...]:
        """Digests of all that an image consists of: its manifest, its configuration, its layers from below."""
        descriptor = self._descriptor(name)
        manifest = json.loads(self.path(descriptor["digest"]).read_bytes())
        return (descriptor["digest"], *(part["digest"] for part in (manifest["config"], *manifest["layers"])))

    def size(self, name: str) -> int:
        """Bytes of an image's blobs."""
        return sum(self.path(digest).stat().st_size for digest in self.blobs(name))

    def path(self, digest: str) -> Path:
        """The file of a blob."""
        return self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")

    def write_archive(self, name: str, full_name: str, stream: IO[bytes], without: Collection[str] = ()) -> None:
        """Write an image as a tar, named `full_name` for who reads it, `without` the blobs that the reader has."""
        descriptor = self._descriptor(name)
        annotations = {_NAME: full_name, _TAG: full_name.rpartition(":")[2]}
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [{**descriptor, "annotations": annotations}]}
        with tarfile.open(fileobj=stream, mode="w|") as archive:
            _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
            _add(archive, "index.json", json.dumps(index).encode())
            for digest in dict.fromkeys(self.blobs(name)):
                if digest not in without:
                    archive.add(self.path(digest), f"blobs/sha256/{digest.removeprefix('sha256:')}")

    def store(self, name: str, layer: Path, config: dict[str, Any]) -> None:
        """Move an uncompressed layer in and make an image of it. `config` says all but the layer."""
        digest = _digest(layer)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        size = layer.stat().st_size
        os.replace(layer, self.path(digest))
        config = {**config, "rootfs": {"type": "layers", "diff_ids": [digest]}}
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._put(config, _CONFIG),
            "layers": [{"mediaType": _LAYER, "digest": digest, "size": size}],
        }
        descriptor = {**self._put(manifest, _MANIFEST), "annotations": {_TAG: name}}
        others = [entry for entry in self._manifests() if entry.get("annotations", {}).get(_TAG) != name]
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        (self.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [*others, descriptor]}))

    def prune(self) -> None:
        """Remove the blobs that no image has any more."""
        # An image that was stored again leaves its former manifest behind without a name.
        names = [entry["annotations"][_TAG] for entry in self._manifests() if "annotations" in entry]
        kept = {digest for name in names for digest in self.blobs(name)}
        for blob in (self.folder / "blobs" / "sha256").iterdir():
            if f"sha256:{blob.name}" not in kept:
                blob.unlink()

    def _descriptor(self, name: str) -> dict[str, Any]:
        return next(entry for entry in self._manifests() if entry.get("annotations", {}).get(_TAG) == name)

    def _manifests(self) -> list[dict[str, Any]]:
        index = self.folder / "index.json"
        manifests: list[dict[str, Any]] = json.loads(index.read_bytes())["manifests"] if index.exists() else []
        return manifests

    def _put(self, content: dict[str, Any], media_type: str) -> dict[str, Any]:
        raw = json.dumps(content, sort_keys=True).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.path(digest).write_bytes(raw)
        return {"mediaType": media_type, "digest": digest, "size": len(raw)}


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
