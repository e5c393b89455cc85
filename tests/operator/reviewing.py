"""Reviews as an API server sends them, and resources whose engines have told what they know."""

from typing import Any

from worlds import learnt

from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.decide.feasibility import Told, model_key
from capstan_operator.world.kubernetes.access import INFERENCE_DEPLOYMENTS
from capstan_operator.world.kubernetes.store import Store
from memory_figures import FIGURES

PINNED = {"source": {"uri": "bundled://tiny"}, "maxModelLength": 4096}
TOO_LONG = {**PINNED, "maxModelLength": 10_000}
STRICT = [{"name": "interactive", "tpot": {"thresholdMilliseconds": 3}}]


def manifest(of: InferenceDeployment, name: str = "web", namespace: str = "default") -> dict[str, Any]:
    """As an API server holds it."""
    made = of.document()
    return {**made, "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"}}


def asking(new: dict[str, Any], old: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    request = {
        "uid": "705ab4f5",
        "kind": {"group": "capstan.dev", "version": "v1alpha1", "kind": "InferenceDeployment"},
        "operation": "CREATE" if old is None else "UPDATE",
        "object": new,
        "oldObject": old,
        "dryRun": False,
        "userInfo": {"username": "somebody"},
        **fields,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


def store(of: InferenceDeployment, name: str = "live", namespace: str = "default", **memory: Any) -> Store:
    """A store with one resource, whose engines have told what their model takes and how fast they are."""
    made = Store(lambda _: None)
    # Its name is the model's own, and so a part of what its engines are started with.
    of = parse(manifest(of, name, namespace))
    remembered = learnt(of, **{"told": Told(of=model_key(of.spec), figures=FIGURES), **memory})
    lived = manifest(of, name, namespace) | {"status": {"memory": remembered.durable()}}
    made.take(INFERENCE_DEPLOYMENTS, lived, gone=False)
    return made
