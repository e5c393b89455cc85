"""`InferenceDeployment` in version v1alpha1: the resource as a whole, and how to read one from YAML."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capstan_api import names
from capstan_api.spec import Contract, InferenceDeploymentSpec, Name
from capstan_api.status import InferenceDeploymentStatus


class Metadata(BaseModel):
    """The part of Kubernetes' ObjectMeta that Capstan reads; other fields pass through untouched."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Name
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
    spec: InferenceDeploymentSpec
    status: InferenceDeploymentStatus = Field(default_factory=InferenceDeploymentStatus)

    @property
    def served_model_names(self) -> tuple[str, ...]:
        return tuple(self.spec.model.served_model_names) or (self.metadata.name,)


class InvalidResource(ValueError):
    """A document is not a valid InferenceDeployment. The message has one line per fault: `field: what is wrong`."""


def parse(document: Any) -> InferenceDeployment:
    """Validate a decoded document; raises `InvalidResource` with every fault named by its path in the YAML."""
    if not isinstance(document, dict):
        raise InvalidResource(f"expected a mapping with apiVersion {names.API_VERSION}, got {type(document).__name__}")
    try:
        return InferenceDeployment.model_validate(document, by_name=False)
    except ValidationError as error:
        raise InvalidResource("\n".join(_sentence(dict(e)) for e in error.errors(include_url=False))) from None


def load(path: Path) -> InferenceDeployment:
    """Read the one InferenceDeployment in a YAML file; raises `InvalidResource`, or `OSError` when it cannot be read."""
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidResource(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if len(documents) != 1:
        raise InvalidResource(f"{path} holds {len(documents)} documents; one {names.KIND} is expected")
    return parse(documents[0])


def _sentence(fault: dict[str, Any]) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
