"""`FetchArgs`: the whole configuration of one fetcher, as the operator writes it and the fetcher reads it.

Addresses come from the operator's settings and never from the resource: who may create an InferenceDeployment may
name a repository or a bucket, but not a host. Secrets are not part of it: tokens and keys travel in the environment.
"""

from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic.alias_generators import to_camel

from capstan_api import names

_URI = (
    r"^(hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*|s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()/-]*)?)$"
)
_HOST = r"^(\*\.)?[A-Za-z0-9.:\[\]-]+$"


class SourceEndpoint(BaseModel):
    """One server that checkpoints may come from, with the hosts that it may send us on to.

    Also a part of the operator's settings, where names are written in camelCase; both are accepted.
    """

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, frozen=True, extra="forbid"
    )

    url: str = Field(pattern=r"^https?://", max_length=512, description="Base address, without credentials.")
    redirect_hosts: tuple[Annotated[str, StringConstraints(pattern=_HOST, max_length=253)], ...] = Field(
        default=(), description="Hosts that may be redirected to, as HOST, HOST:PORT or *.DOMAIN."
    )
    allow_private: bool = Field(
        default=False,
        description="Permit private and loopback addresses. Link-local ones, where clouds keep their metadata, never.",
    )

    @model_validator(mode="after")
    def _plain(self) -> Self:
        parts = urlsplit(self.url)
        if not parts.hostname or parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("url must be http(s)://HOST[:PORT][/PATH] without credentials, query or fragment")
        return self


HUGGING_FACE_HUB = SourceEndpoint(url="https://huggingface.co", redirect_hosts=("*.huggingface.co", "*.hf.co"))
"""The public hub. Large files are served by its content network, under hf.co."""


class FetchArgs(BaseModel):
    """What to fetch, where from and where to. Field names are also the JSON keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(pattern=_URI, max_length=1024, description="`hf://ORGANIZATION/NAME` or `s3://BUCKET/PREFIX`.")
    revision: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$",
        max_length=255,
        description="Branch, tag or commit of an hf:// source; its main branch when absent.",
    )
    digest: str | None = Field(
        default=None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="What the files must add up to; `capstan digest DIRECTORY` tells it.",
    )
    destination: Path = Field(description="Directory of the finished checkpoint. Its parent holds the unfinished one.")
    endpoint: SourceEndpoint | None = Field(
        default=None, description="Server to fetch from; the public one of the source's scheme when absent."
    )
    max_bytes: int = Field(default=4 << 40, ge=1, description="A larger checkpoint is refused before the download.")
    connections: int = Field(default=4, ge=1, le=64, description="Files that are downloaded at the same time.")
    stall_timeout_s: float = Field(default=30, gt=0, description="A connection without a byte for so long is renewed.")
    patience_s: float = Field(default=300, ge=0, description="Without any progress for so long, the fetcher gives up.")
    host: str = Field(default="127.0.0.1", description="Address of the admin port.")
    admin_port: int = Field(
        default=names.PORT_ENGINE_ADMIN, ge=0, le=65535, description="Admin port; 0 takes a free one."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.destination.is_absolute() or ".." in self.destination.parts or self.destination.parent.name == "":
            raise ValueError("destination must be an absolute path below a directory of its own, without '..'")
        if self.revision is not None and not self.uri.startswith("hf://"):
            raise ValueError("revision is for hf:// sources; an s3:// source is pinned by its digest")
        if "/.." in self.uri:
            raise ValueError("uri must not climb with '..'")
        return self
