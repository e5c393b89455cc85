"""What the bodies of all open requests hold together: no crowd of long prompts ends the process that everybody passes.

A body may be as long as half of what the others leave free. The surprising idea: there is no moment at which long
prompts hold everything and short ones are refused (dynamic thresholds of shared buffers, Choudhury and Hahne 1998).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from capstan_gateway.errors import TooManyBytes

MAX_TOTAL_BYTES: Final = 64 << 20
"""Unless told otherwise. A quarter of the process's memory is right: a body is there twice while it is read."""
_RETRY_AFTER_S: Final = 1.0


class Bodies:
    def __init__(self, max_bytes: int = MAX_TOTAL_BYTES) -> None:
        self._free = max_bytes

    @contextmanager
    def one(self) -> Iterator["Body"]:
        """Account of one request's body, which is there until the request has ended."""
        body = Body(self)
        try:
            yield body
        finally:
            self._free += body.size

    def take(self, num_bytes: int, beside: int) -> None:
        """Take so many more for a body that has `beside` bytes already. Raises TooManyBytes."""
        if 2 * (beside + num_bytes) > self._free + beside:
            raise TooManyBytes(
                "The gateway holds too many long requests at this moment. Try again, or send a shorter prompt.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._free -= num_bytes


class Body:
    """What one body has taken so far, in bytes."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self.size = 0

    def grow(self, num_bytes: int) -> None:
        """Count a part that has come. Raises TooManyBytes."""
        self._bodies.take(num_bytes, self.size)
        self.size += num_bytes
