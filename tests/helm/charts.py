"""A release of the chart as a list of objects, and the sets of values that every general claim is tested with.

Helm itself does the rendering, from a Python package that carries it. No cluster is asked.
"""

from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/capstan"
Object = dict[str, Any]

DIGEST = "sha256:" + "0123456789abcdef" * 4

VALUE_SETS: dict[str, Object] = {
    "defaults": {},
    "namespaced": {"watchNamespaces": ["team-a", "team-b"], "crds": {"enabled": False}},
    "everything": {
        "fullnameOverride": "inference",
        "nameOverride": "inf",
        "replicas": 3,
        "image": {"digest": DIGEST},
        "engine": {"image": {"repository": "registry.example/engine", "tag": "cuda"}},
        "imagePullSecrets": ["registry"],
        "serviceAccount": {"annotations": {"example.com/role": "reader"}},
        "key": {"secretName": "own-key"},
        "admission": {
            "certificate": {"secretName": "own-certificate", "caBundle": "Y2E="},
            "annotations": {"cert-manager.io/inject-ca-from": "prod/own-certificate"},
        },
        "config": {"logLevel": "DEBUG", "lease": {"durationSeconds": 20}, "gateway": {"cpuMillicores": 500}},
        "priorityClassName": "high",
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "infra", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        "podLabels": {"team": "infra", "app.kubernetes.io/component": "stolen"},
        "podAnnotations": {"example.com/note": "yes"},
        "networkPolicy": {
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "admissionFrom": [{"ipBlock": {"cidr": "10.0.0.0/28"}}],
            "extraEgress": [{"ports": [{"port": 3128, "protocol": "TCP"}]}],
        },
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
        },
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraVolumes": [{"name": "certificates", "configMap": {"name": "certificates"}}],
        "extraVolumeMounts": [{"name": "certificates", "mountPath": "/certificates", "readOnly": True}],
        "extraObjects": [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "{{ .Release.Name }}-more", "namespace": "{{ .Release.Namespace }}"},
            }
        ],
    },
    "least": {
        "replicas": 1,
        "crds": {"enabled": False},
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "somebody"},
        "admission": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
    },
}


class _Strict(yaml.SafeLoader):
    """Refuses a key that is written twice, as an API server does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if len(keys) != len(set(keys)):
            raise yaml.constructor.ConstructorError(None, None, f"a key appears twice in {keys}", node.start_mark)
        return super().construct_mapping(node, deep)


def templates(values: Object, *, name: str = "demo", namespace: str = "prod") -> dict[str, str]:
    """What each template gives, by the template's path below the chart."""
    with helm_python.Chart.load(CHART) as chart:
        texts = chart.render(values, name=name, namespace=namespace)
    return {path.removeprefix("capstan/"): text for path, text in texts.items()}


def objects(values: Object, *, name: str = "demo", namespace: str = "prod") -> list[Object]:
    """All objects of the release, hooks included."""
    texts = templates(values, name=name, namespace=namespace).items()
    parsed = [list(yaml.load_all(text, Loader=_Strict)) for path, text in texts if path.endswith(".yaml")]
    return [document for documents in parsed for document in documents if document]


@cache
def release(values: str) -> tuple[Object, ...]:
    """The objects of one of `VALUE_SETS`; not to be changed."""
    return tuple(objects(VALUE_SETS[values]))


def of_kind(found: tuple[Object, ...] | list[Object], kind: str) -> list[Object]:
    return [each for each in found if each["kind"] == kind]


def secret(found: tuple[Object, ...] | list[Object], suffix: str) -> Object:
    """The one Secret whose name ends so."""
    [one] = [each for each in of_kind(found, "Secret") if each["metadata"]["name"].endswith(suffix)]
    return one


def only(found: tuple[Object, ...] | list[Object], kind: str) -> Object:
    """The one object of a kind."""
    [one] = of_kind(found, kind)
    return one
