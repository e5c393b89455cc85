"""Where the resource comes from when there is no API server: a file, read again when it changes."""

from pathlib import Path

from capstan_api.manifest import InvalidResource
from capstan_api.v1alpha1 import InferenceDeployment, load


class FileSource:
    """Gives the resource in `path`. An edit counts as a new generation, one that cannot be understood too.

    Raises `InvalidResource` or `OSError` while the file cannot be read; the caller decides what is in force meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._read: InferenceDeployment | InvalidResource | None = None
        self._generation = 0

    def __call__(self) -> InferenceDeployment:
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._read is None or stamp != self._stamp:
            self._read = self._newest()
            self._stamp = stamp
        if isinstance(self._read, InvalidResource):
            raise InvalidResource(str(self._read), self._read.generation)
        return self._read

    def _newest(self) -> InferenceDeployment | InvalidResource:
        """What the file holds now; raises `OSError` when it cannot be read."""
        try:
            deployment = load(self._path)
        except InvalidResource as error:
            self._generation += 1
            return InvalidResource(str(error), self._generation)
        if not isinstance(self._read, InferenceDeployment) or deployment.spec != self._read.spec:
            self._generation += 1
        metadata = deployment.metadata.model_copy(update={"generation": self._generation})
        return deployment.model_copy(update={"metadata": metadata})
