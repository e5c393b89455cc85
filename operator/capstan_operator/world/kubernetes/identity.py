"""Who an object belongs to: names, labels and the owner reference that lets the garbage collector do the deleting.

Pure. The surprising idea: ownership is the uid and never the name. A resource that is deleted and made again under its
old name is another one, and the children of the first are foreigners to it until they are gone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from capstan_api import names


class Component(StrEnum):
    """Values of the label `app.kubernetes.io/component`."""

    ENGINE = "engine"
    GATEWAY = "gateway"


# A pod of a Deployment is controlled by a ReplicaSet: this names the InferenceDeployment behind it.
ANNOTATION_OWNER = f"{names.GROUP}/owner"
LABEL_INSTANCE = "app.kubernetes.io/instance"


@dataclass(frozen=True)
class Identity:
    """One InferenceDeployment in a cluster, and the names of what belongs to it."""

    namespace: str
    name: str
    uid: str

    @property
    def gateway(self) -> str:
        return f"{self.name}-gateway"

    @property
    def engine(self) -> str:
        return f"{self.name}-engine"

    @property
    def engines(self) -> str:
        return f"{self.name}-engines"

    @property
    def admin_secret(self) -> str:
        return f"{self.name}-admin"

    def revision(self, revision: str) -> str:
        """What the names of the ConfigMaps of one revision of the engines begin with."""
        return f"{self.name}-{revision}"

    @property
    def service_host(self) -> str:
        return f"{self.name}.{self.namespace}.svc"

    @property
    def selector(self) -> str:
        """Label selector of everything that belongs to it."""
        return f"{names.LABEL_DEPLOYMENT}={self.name}"

    def match(self, component: Component) -> dict[str, str]:
        """Labels that select the pods of one component."""
        return {names.LABEL_DEPLOYMENT: self.name, names.LABEL_COMPONENT: component}

    def labels(self, component: Component, revision: str = "") -> dict[str, str]:
        labels = {
            "app.kubernetes.io/name": "capstan",
            LABEL_INSTANCE: self.name,
            names.LABEL_COMPONENT: component.value,
            "app.kubernetes.io/managed-by": "capstan-operator",
            names.LABEL_DEPLOYMENT: self.name,
        }
        return {**labels, names.LABEL_REVISION: revision} if revision else labels

    def metadata(self, name: str, component: Component, revision: str = "") -> dict[str, Any]:
        """Metadata of an object that goes when the InferenceDeployment does."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(component, revision),
            "ownerReferences": [
                {
                    "apiVersion": names.API_VERSION,
                    "kind": names.KIND,
                    "name": self.name,
                    "uid": self.uid,
                    "controller": True,
                    # True would need a right over the owner's finalizers in clusters that enforce it.
                    "blockOwnerDeletion": False,
                }
            ],
        }

    def owns(self, manifest: Mapping[str, Any]) -> bool:
        """Whether the object's controller, or who it says is behind it, is this very InferenceDeployment."""
        annotations = manifest["metadata"].get("annotations") or {}
        return self.uid in (controller_uid(manifest), annotations.get(ANNOTATION_OWNER))


def controller_uid(manifest: Mapping[str, Any]) -> str | None:
    """The uid of the object's controller, None when it has none."""
    references = manifest["metadata"].get("ownerReferences") or ()
    return next((str(r["uid"]) for r in references if r.get("controller")), None)
