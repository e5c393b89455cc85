"""`spec.model`: what is served, and where its checkpoint comes from.

Knows the forms of an address and which fields go with which of them; fetching and mounting are others' work. The
surprising idea: the scheme alone says who brings the files. `bundled`, `file`, `pvc` and `oci` are there when the
engine starts, so nothing can be pinned or authenticated; `hf` and `s3` are fetched first, so everything can.
"""

from typing import Annotated

from pydantic import Field, StringConstraints

from capstan_api.contract import Contract, Distinct, ModelName, ObjectName, Rule

_URI = (
    r"^(bundled://[a-z0-9][a-z0-9._-]*"
    r"|file:///.+"
    r"|pvc://[a-z0-9][-a-z0-9.]*(/[A-Za-z0-9._/-]+)?"
    r"|hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
    r"|s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9!_.*'()/-]*)?"
    r"|oci://[A-Za-z0-9][A-Za-z0-9._:/@-]*)$"
)
_FETCHED = ("hf://", "s3://")
_FETCHED_CEL = "uri.startsWith('hf://') || self{0}.uri.startsWith('s3://')"


class ModelSource(Contract):
    """Where the checkpoint lies."""

    uri: Annotated[str, StringConstraints(pattern=_URI, min_length=1, max_length=1024)] = Field(
        description="`bundled://NAME` for a model shipped with Capstan, `file:///DIRECTORY` where the engine runs, "
        "`pvc://CLAIM/PATH`, `hf://ORGANIZATION/NAME`, `s3://BUCKET/PREFIX`, or `oci://REFERENCE`, an image that has "
        "the checkpoint at its root."
    )
    revision: (
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", min_length=1, max_length=255)] | None
    ) = Field(default=None, description="Of hf:// only: commit, tag or branch; a commit pins it.")
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[a-f0-9]{64}$", max_length=71)] | None = Field(
        default=None,
        description="What was fetched must have this digest: `sha256:` over its sorted lines `SHA256  PATH`.",
    )
    secret_name: ObjectName | None = Field(
        default=None,
        description="Secret in the same namespace with HF_TOKEN or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. "
        "Only the container that fetches sees it.",
    )

    rules = (
        Rule(
            cel="!has(self.revision) || self.uri.startsWith('hf://')",
            holds=lambda s: s.revision is None or s.uri.startswith("hf://"),
            message="revision belongs to hf:// only; remove it, or pin what is fetched by digest",
        ),
        Rule(
            cel=f"(!has(self.digest) && !has(self.secretName)) || self.{_FETCHED_CEL.format('')}",
            holds=lambda s: (s.digest is None and s.secret_name is None) or s.is_fetched,
            message="digest and secretName belong to hf:// and s3:// only: nothing else is fetched",
        ),
        Rule(
            cel="self.uri.startsWith('file://') || !self.uri.contains('/..')",
            holds=lambda s: s.uri.startswith("file://") or "/.." not in s.uri,
            message="uri must not climb with '..'; name the directory itself",
        ),
    )

    @property
    def is_fetched(self) -> bool:
        """Whether its files are downloaded before an engine starts."""
        return self.uri.startswith(_FETCHED)


class ModelCache(Contract):
    """Where fetched files are kept for the next replica."""

    claim_name: ObjectName = Field(
        description="PersistentVolumeClaim in the same namespace; ReadWriteMany where replicas run on several nodes."
    )


class ModelSpec(Contract):
    """What is served. A change here starts a new revision."""

    source: ModelSource
    cache: ModelCache | None = Field(
        default=None, description="Of hf:// and s3:// only: keeps the files; without it each replica fetches its own."
    )
    served_model_names: Annotated[list[ModelName], Field(max_length=8), Distinct()] = Field(
        default_factory=list, description="Names that requests may use; the resource's own name when empty."
    )
    max_model_length: int = Field(
        default=8192, ge=16, le=10_000_000, description="Longest prompt plus output, in tokens."
    )

    rules = (
        Rule(
            cel=f"!has(self.cache) || self.source.{_FETCHED_CEL.format('.source')}",
            holds=lambda m: m.cache is None or m.source.is_fetched,
            message="cache belongs to hf:// and s3:// only: nothing else is fetched",
        ),
    )
