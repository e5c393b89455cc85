"""Objects that exist only when they are wanted: disruption budget, PodMonitor, InferencePool. Pure.

The last two are kinds of other projects and need their CustomResourceDefinitions; the world asks before it applies.
"""

from typing import Any

from capstan_api import names
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.installation import Installation


def disruption_budget(identity: Identity, num_kept: int) -> dict[str, Any]:
    """One of `num_kept` replicas may be evicted at a time; a single one may always be.

    `minAvailable` and not `maxUnavailable`: the latter is counted by way of the owner's scale subresource, which has
    nothing to say in mode Auto.
    """
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": identity.metadata(identity.name, Component.ENGINE),
        "spec": {
            "minAvailable": max(num_kept - 1, 0),
            "selector": {"matchLabels": identity.match(Component.ENGINE)},
            # A replica that is not ready serves nobody: its node need not wait for it.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }


def pod_monitor(identity: Identity, installation: Installation) -> dict[str, Any]:
    """Engines and gateways, scraped by the Prometheus operator; labels say whose they are."""
    metadata = identity.metadata(identity.name, Component.ENGINE)
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": {**metadata, "labels": {**installation.pod_monitor_labels, **metadata["labels"]}},
        "spec": {
            "selector": {"matchLabels": {names.LABEL_DEPLOYMENT: identity.name}},
            "podTargetLabels": [names.LABEL_DEPLOYMENT, names.LABEL_COMPONENT, names.LABEL_REVISION],
            "podMetricsEndpoints": [
                {
                    "port": "http",
                    "path": "/metrics",
                    # Dashboards and rules group by `deployment`, as the operator's own series are labelled.
                    "relabelings": [
                        {
                            "sourceLabels": ["__meta_kubernetes_pod_label_capstan_dev_deployment"],
                            "targetLabel": "deployment",
                        }
                    ],
                }
            ],
        },
    }


def inference_pool(identity: Identity) -> dict[str, Any]:
    """The engines as a pool of the Gateway API's inference extension, picked by an endpoint picker named NAME-epp."""
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": identity.metadata(identity.name, Component.ENGINE),
        "spec": {
            "selector": {"matchLabels": identity.match(Component.ENGINE)},
            "targetPorts": [{"number": names.PORT_ENGINE}],
            "endpointPickerRef": {"name": f"{identity.name}-epp", "port": {"number": 9002}},
        },
    }
