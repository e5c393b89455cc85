"""The pin of a checkpoint on this machine, computed as the fetcher computes that of one it has downloaded."""

from pathlib import Path

from capstan_cli.errors import InputError
from capstan_fetch.errors import SourceError
from capstan_fetch.manifest import digest_of_directory


def digest(directory: Path) -> str:
    """`sha256:…`, as `spec.model.source.digest` takes it. Raises `InputError`."""
    try:
        return digest_of_directory(directory)
    except SourceError as error:
        raise InputError(str(error).removeprefix("spec.model.source.uri: ")) from None
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}") from None
