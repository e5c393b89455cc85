"""Files that a command leaves behind: the place is tried before the work begins, which may take minutes."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from capstan_cli.errors import InputError

if TYPE_CHECKING:
    # Half a second to import, and most commands draw nothing.
    from matplotlib.figure import Figure

_PICTURE = ".png"


def file(path: Path | None) -> Path | None:
    """The same, with a directory made for it; raises `InputError` when no file can be there."""
    if path is None:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from None
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a directory")
    return path


def picture(path: Path | None) -> Path | None:
    """The same for a picture."""
    if path is not None and path.suffix.lower() != _PICTURE:
        raise InputError(f"cannot draw {path}: pictures are PNG, so the name must end in {_PICTURE}")
    return file(path)


def write_json(path: Path, document: Any) -> None:
    """Equal documents give equal bytes; raises `InputError`."""
    file(path)
    try:
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def write_picture(path: Path, figure: "Figure") -> None:
    """Equal figures give equal bytes; raises `InputError`."""
    picture(path)
    try:
        # Without the version of the library.
        figure.savefig(path, dpi=130, metadata={"Software": None})
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {path}: {error.strerror}")
