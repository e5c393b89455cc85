"""What the download needs to know of a place that checkpoints come from: three questions, and no protocol."""

from collections.abc import Mapping
from typing import Protocol

from yarl import URL

from capstan_fetch.errors import Refused, SourceError
from capstan_fetch.listing import Listing, RemoteFile
from capstan_fetch.transport import Transport


class Source(Protocol):
    """A repository or a prefix of a bucket."""

    async def listing(self, transport: Transport) -> Listing:
        """The checkpoint's files as they are now. Raises `Hiccup`, `Refused` or `SourceError`."""

    def locate(self, base: URL, listing: Listing, file: RemoteFile) -> tuple[URL, Mapping[str, str]]:
        """Where the file is, in the state that was listed, and the headers that hold the server to that state."""

    def authorize(self, url: URL, headers: Mapping[str, str]) -> Mapping[str, str]:
        """`headers` with the credentials for a request to the endpoint itself."""

    def explained(self, refused: Refused) -> SourceError:
        """The refusal as a sentence with its remedy."""
