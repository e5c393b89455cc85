"""`InferenceDeployment` in version v1alpha1: the resource as a whole, how to read one and how to write one."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from capstan_api import names
from capstan_api.contract import SERVICE_LABEL, Contract, Rule
from capstan_api.manifest import InvalidResource, explain, read_document, to_json
from capstan_api.spec import InferenceDeploymentSpec
from capstan_api.status import InferenceDeploymentStatus
from capstan_api.structural import Schema, structural

__all__ = ["InferenceDeployment", "InvalidResource", "Metadata", "load", "parse"]


class Metadata(BaseModel):
    """The part of Kubernetes' ObjectMeta that Capstan reads; other fields pass through untouched."""

    model_config = ConfigDict(extra="allow", frozen=True)

    # Short enough for `NAME-REVISION-ORDINAL` to be a pod's host name; clients know a Service of this very name.
    name: Annotated[str, StringConstraints(pattern=SERVICE_LABEL, min_length=1, max_length=40)] = Field(
        description="At most 40 lower-case letters, digits and hyphens, the first a letter: it names a Service."
    )
    namespace: str = "default"
    generation: int = 1
    uid: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class InferenceDeployment(Contract):
    """One model, served within its SLOs."""

    api_version: Literal["capstan.dev/v1alpha1"] = "capstan.dev/v1alpha1"
    kind: Literal["InferenceDeployment"] = "InferenceDeployment"
    metadata: Metadata
    spec: InferenceDeploymentSpec = Field(description="The desired state.")
    status: InferenceDeploymentStatus = Field(default_factory=InferenceDeploymentStatus)

    rules = (
        Rule(
            cel=(
                "self.spec.model.servedModelNames.size() > 0 ||"
                " self.spec.slos.all(c, !has(c.selector.modelAlias) || c.selector.modelAlias != self.metadata.name)"
            ),
            holds=lambda d: not set(d.served_model_names) & set(d.spec.model_aliases),
            message="spec.slos: a selector.modelAlias must differ from metadata.name, the model's own name",
        ),
    )

    @property
    def served_model_names(self) -> tuple[str, ...]:
        """Names that requests may use, the aliases of SLO classes aside."""
        return tuple(self.spec.model.served_model_names) or (self.metadata.name,)

    def document(self) -> dict[str, Any]:
        """The resource as it would stand in a manifest: camelCase, plain values, absent fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def parse(document: Any) -> InferenceDeployment:
    """Validate a decoded document; raises `InvalidResource` with every fault named by its path in the YAML."""
    if not isinstance(document, dict):
        raise InvalidResource(f"expected a mapping with apiVersion {names.API_VERSION}, got {type(document).__name__}")
    # Strict, because an API server converts no text to numbers; from JSON, because that is what it reads.
    try:
        return InferenceDeployment.model_validate_json(to_json(document), strict=True, by_name=False)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        raise InvalidResource("\n".join(explain(dict(fault), _schema()) for fault in faults)) from None


def load(path: Path) -> InferenceDeployment:
    """Read the one InferenceDeployment in a YAML file; raises `InvalidResource`, or `OSError` when unreadable."""
    return parse(read_document(path))


@cache
def _schema() -> Schema:
    return structural(InferenceDeployment)
