"""Where checkpoints lie on this machine."""

import os
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from capstan_operator.errors import ModelNotFound

ENV_MODELS: Final = "CAPSTAN_MODELS"
"""Directory of the models behind `bundled://`, for installations that do not have the source tree."""
_SOURCE_TREE: Final = Path(__file__).resolve().parents[4] / "runtime_image" / "models"


def checkpoint_directory(uri: str) -> Path:
    """The directory behind `bundled://NAME` or `file:///DIRECTORY`. Raises `ModelNotFound` with the remedy."""
    if not uri.startswith(("bundled://", "file://")):
        raise ModelNotFound(f"{uri} needs a cluster; here, fetch the model first and name its directory as file://")
    if uri.startswith("bundled://"):
        shelf = Path(os.environ.get(ENV_MODELS) or _SOURCE_TREE)
        directory = shelf / uri.removeprefix("bundled://")
        remedy = f"models lie in {shelf}; set {ENV_MODELS} if yours are elsewhere"
    else:
        directory, remedy = Path(unquote(uri.removeprefix("file://"))), "correct spec.model.source.uri"
    if not (directory / "config.json").is_file():
        raise ModelNotFound(f"{uri}: {directory} has no config.json; {remedy}")
    return directory
