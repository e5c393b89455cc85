"""The errors of the fetcher.

    FetchError            ends the fetcher; its text is the pod's last line, after the prefix
    ├── SourceError       `source:`      the source, its credentials or the pin are wrong, or nobody answers
    │   └── UnsafeName    `source:`      a listed file has a name that could lead out of its directory
    └── Infeasible        `infeasible:`  the checkpoint is larger than what there is room for
    Hiccup                tried again while there is patience; then it becomes a SourceError
    Refused               the server said no; the source that asked turns it into a SourceError with the remedy

A text names the field of the resource and what to do. It never holds a URL's query, a header or a key: addresses that
servers send us on to are signed, and whoever reads the log could use them.
"""

from typing import ClassVar


class FetchError(Exception):
    """Base of what ends the fetcher."""

    prefix: ClassVar[str] = "source"


class SourceError(FetchError):
    """The source cannot be had as the resource names it."""


class UnsafeName(SourceError):
    """A listed file must not be written under its name."""


class Infeasible(FetchError):
    """The checkpoint can never fit."""

    prefix: ClassVar[str] = "infeasible"


class Hiccup(Exception):
    """Something that may be better in a moment. `retry_after_s` is the server's own wish, when it has one."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Refused(Exception):
    """A final answer other than success. `code` is the server's own word for it, empty when it gave none."""

    def __init__(self, status: int, host: str, code: str = "") -> None:
        super().__init__(f"{host} answered HTTP {status}{f' ({code})' if code else ''}")
        self.status = status
        self.host = host
        self.code = code
