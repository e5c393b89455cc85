"""Where the resource comes from when there is no API server: a file, read again when it changes."""

from pathlib import Path

from capstan_api.v1alpha1 import InferenceDeployment, load


class FileSource:
    """Gives the resource in `path`. An edit counts as a new generation.

    Raises `InvalidResource` or `OSError` while the file cannot be read; the caller decides what is in force meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._deployment: InferenceDeployment | None = None
        self._generation = 0

    def __call__(self) -> InferenceDeployment:
        stat = self._path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if self._deployment is None or stamp != self._stamp:
            deployment = load(self._path)
            if self._deployment is None or deployment.spec != self._deployment.spec:
                self._generation += 1
            metadata = deployment.metadata.model_copy(update={"generation": self._generation})
            self._deployment = deployment.model_copy(update={"metadata": metadata})
            self._stamp = stamp
        return self._deployment
