"""`capstan digest`: the hash that pins a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer


def digest(
    directory: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="A checkpoint, downloaded by any tool.")],
) -> None:
    """Print what spec.model.source.digest pins a checkpoint with: one hash of all files that a replica would fetch."""
    from capstan_cli import pin

    print(pin.digest(directory))
