"""The chart's values: every key, its default, its bounds and its sentence, written once.

`values.yaml`, `values.schema.json` and the table in the chart's README are made from this model. Knows nothing of
templates. The surprising idea: there is no key for a raw pod template; what a reviewer must be able to rely on (user,
capabilities, root file system) cannot be switched off from here.
"""

from typing import Annotated, Any, Literal

from dashboards.rules import RUNBOOK
from pydantic import Field, StringConstraints

from capstan_api import names
from capstan_api.contract import LABEL, Contract
from capstan_api.structural import Schema, structural
from capstan_operator.config import OperatorConfig

# A name of a Kubernetes object, or nothing.
OptionalName = Annotated[str, StringConstraints(pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", max_length=253)]
# What names of Services may begin with, or nothing.
Prefix = Annotated[str, StringConstraints(pattern=r"^([a-z]([-a-z0-9]*[a-z0-9])?)?$", max_length=52)]
Namespace = Annotated[str, StringConstraints(pattern=LABEL, max_length=63)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|[kMGT]i?)?$", max_length=24)]
Duration = Annotated[str, StringConstraints(pattern=r"^[0-9]+(ms|s|m|h)$", max_length=16)]
Address = Annotated[str, StringConstraints(pattern=r"^[A-Za-z./][^\s#'\"]*$", max_length=512)]
Labels = dict[str, str]
Object = dict[str, Any]
Port = Annotated[int, Field(ge=1, le=65535)]

# What the chart itself writes into the operator's configuration, from the release and from other values.
GIVEN = ("watchNamespaces", "keyFile", "images", "podMonitorLabels", "healthHost", "healthPort", "admission")
GIVEN_OF_LEASE = ("enabled", "name", "namespace", "identity")


def _settable(schema: Schema) -> None:
    """Let `config` hold what is left of the operator's configuration, and nothing else."""
    schema["properties"] = _without(structural(OperatorConfig), GIVEN)
    schema["properties"]["lease"]["properties"] = _without(schema["properties"]["lease"], GIVEN_OF_LEASE)


def _without(schema: Schema, keys: tuple[str, ...]) -> Schema:
    return {key: child for key, child in schema["properties"].items() if key not in keys}


class Image(Contract):
    """Where an image comes from."""

    repository: Annotated[str, StringConstraints(min_length=1, max_length=255)]
    tag: Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$", max_length=128)] = Field(
        default="", description="The chart's appVersion when empty."
    )
    digest: Annotated[str, StringConstraints(pattern=r"^(sha256:[a-f0-9]{64})?$")] = Field(
        default="", description="`sha256:…`; wins over the tag, so that what runs is what was reviewed."
    )


class Engine(Contract):
    """What the operator starts as replicas."""

    image: Image = Field(
        default=Image(repository=f"{names.GROUP}/capstan-engine"), description="The engine and the models it ships."
    )


class Crds(Contract):
    enabled: bool = Field(default=True, description="Install and upgrade the CustomResourceDefinition with this chart.")
    keep: bool = Field(
        default=True,
        description="Leave it, with every InferenceDeployment and the operator's key, when the release is uninstalled.",
    )


class Rbac(Contract):
    create: bool = Field(default=True, description="Create the roles that the operator needs, and bind them.")
    aggregate: bool = Field(
        default=True,
        description="Add InferenceDeployments to the cluster's view, edit and admin roles. Not in namespaced mode.",
    )


class ServiceAccount(Contract):
    create: bool = Field(default=True, description="Create the operator's ServiceAccount.")
    name: OptionalName = Field(default="", description="Its name; the release's full name when empty.")
    annotations: Labels = Field(default={}, description="Its annotations.")


class Key(Contract):
    secret_name: OptionalName = Field(
        default="",
        description="An existing Secret with the entry `key` (32 bytes or more). Needed where manifests are rendered"
        " without a cluster (Argo CD, `helm template`); else one is made at the first install and kept.",
    )


class Certificate(Contract):
    """Whoever brings one says how the API server comes to trust it: `caBundle`, or an annotation for a tool."""

    secret_name: OptionalName = Field(
        default="",
        description="An existing Secret of type kubernetes.io/tls for the Service's name, such as cert-manager makes."
        " Else one is made at the first install and kept; where manifests are rendered without a cluster (Argo CD,"
        " `helm template`), each rendering makes another, which works and shows as a difference.",
    )
    ca_bundle: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9+/=]*$")] = Field(
        default="", description="Who issued the certificate in that Secret: PEM, in base64."
    )


class Admission(Contract):
    enabled: bool = Field(
        default=True,
        description="Judge InferenceDeployments before they are stored. What cannot be judged in three seconds is"
        " stored. Needs the right to create a ValidatingWebhookConfiguration.",
    )
    certificate: Certificate = Field(default=Certificate(), description="What the webhook is served with.")
    annotations: Labels = Field(
        default={},
        description="Of the ValidatingWebhookConfiguration, such as `cert-manager.io/inject-ca-from`.",
    )


class Amounts(Contract):
    cpu: Quantity
    memory: Quantity


class MemoryLimit(Contract):
    memory: Quantity


class Resources(Contract):
    """No CPU limit: a throttled control loop is late exactly when it is needed."""

    requests: Amounts
    limits: MemoryLimit


class DisruptionBudget(Contract):
    enabled: bool = Field(default=True, description="Keep a standby while nodes are drained; needs two replicas.")


class NetworkPolicy(Contract):
    enabled: bool = Field(
        default=True, description="Admit scrapes and reviews; let out DNS, the API server, engines and gateways."
    )
    api_server_ports: list[Port] = Field(
        default=[443, 6443],
        description="Ports of the API server's endpoints (`kubectl get endpointslices`).",
    )
    metrics_from: list[Object] = Field(
        default=[], description="NetworkPolicyPeers that may scrape the operator; everybody in the cluster when empty."
    )
    admission_from: list[Object] = Field(
        default=[],
        description="NetworkPolicyPeers that may ask for reviews, such as an `ipBlock` of the control plane's nodes;"
        " everybody when empty, because no selector knows an API server.",
    )
    extra_egress: list[Object] = Field(default=[], description="Further egress rules.")


class PodMonitor(Contract):
    enabled: bool = Field(default=False, description="Let the Prometheus operator scrape the operator.")
    interval: Duration = Field(default="15s", description="How often.")
    labels: Labels = Field(
        default={},
        description="Labels by which your Prometheus selects monitors; also of those that InferenceDeployments make,"
        " whether this one is there or not.",
    )


class PrometheusRule(Contract):
    enabled: bool = Field(default=False, description="Install recording rules and alerts as a PrometheusRule.")
    runbook_url: Address = Field(
        default=RUNBOOK,
        description="Where your people read the runbook, which each alert's `runbook_url` leads into; the default is"
        " its place in the project.",
    )
    labels: Labels = Field(default={}, description="Labels by which your Prometheus selects rules.")


class Dashboards(Contract):
    enabled: bool = Field(default=False, description="Install the Grafana dashboards as ConfigMaps for its sidecar.")
    labels: Labels = Field(default={"grafana_dashboard": "1"}, description="Labels by which the sidecar selects them.")
    annotations: Labels = Field(default={"grafana_folder": "Capstan"}, description="Where the sidecar files them.")


class Monitoring(Contract):
    pod_monitor: PodMonitor = Field(
        default=PodMonitor(),
        description="For the operator itself. Engines and gateways are covered by each InferenceDeployment's own"
        " `observability.podMonitor`.",
    )
    prometheus_rule: PrometheusRule = Field(default=PrometheusRule(), description="Needs the Prometheus operator.")
    dashboards: Dashboards = Field(default=Dashboards(), description="Needs Grafana's sidecar.")


class Values(Contract):
    """All of `values.yaml`, in the order in which a reader meets it."""

    name_override: Prefix = Field(default="", description="Replaces the chart's name in the names of objects.")
    fullname_override: Prefix = Field(default="", description="The whole prefix of the names of objects.")
    replicas: Annotated[int, Field(ge=1, le=5)] = Field(
        default=2,
        description="Operators. One acts, the others stand by and take over within 20 seconds; without a standby a"
        " lost node leaves the batch limits at their declared values for minutes.",
    )
    image: Image = Field(
        default=Image(repository=f"{names.GROUP}/capstan"), description="Operator, gateway and model fetcher."
    )
    engine: Engine = Field(default=Engine(), description="What replicas run.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="For all of these images."
    )
    image_pull_secrets: list[Namespace] = Field(
        default=[],
        description="Names of pull secrets: in the release's namespace, and in each that has InferenceDeployments.",
    )
    watch_namespaces: list[Namespace] = Field(
        default=[],
        description="Namespaces to look after; all of them when empty. With a list the chart creates Roles there and"
        " no ClusterRole.",
    )
    crds: Crds = Field(default=Crds(), description="The CustomResourceDefinition.")
    rbac: Rbac = Field(default=Rbac(), description="Rights. The rules come from the operator's own table.")
    service_account: ServiceAccount = Field(default=ServiceAccount(), description="The operator's identity.")
    key: Key = Field(
        default=Key(), description="The secret from which the token of each deployment's admin ports is computed."
    )
    admission: Admission = Field(
        default=Admission(), description="Refusals and warnings at `kubectl apply`, beyond what the definition says."
    )
    config: Object = Field(
        default={},
        description="Keys of the operator's configuration that differ from its defaults, such as `logLevel`.",
        json_schema_extra=_settable,
    )
    resources: Resources = Field(
        default=Resources(requests=Amounts(cpu="100m", memory="192Mi"), limits=MemoryLimit(memory="512Mi")),
        description="Of each operator.",
    )
    priority_class_name: OptionalName = Field(default="", description="Priority of the operator's pods.")
    node_selector: Labels = Field(default={}, description="Nodes for the operator.")
    tolerations: list[Object] = Field(default=[], description="Taints that the operator tolerates.")
    affinity: Object = Field(default={}, description="Replaces the default, which prefers a node for each operator.")
    topology_spread_constraints: list[Object] = Field(default=[], description="How operators spread over zones.")
    pod_labels: Labels = Field(default={}, description="Further labels of the operator's pods.")
    pod_annotations: Labels = Field(default={}, description="Further annotations of the operator's pods.")
    pod_disruption_budget: DisruptionBudget = Field(default=DisruptionBudget(), description="For the operators.")
    network_policy: NetworkPolicy = Field(default=NetworkPolicy(), description="For the operators.")
    monitoring: Monitoring = Field(default=Monitoring(), description="Prometheus and Grafana.")
    extra_env: list[Object] = Field(default=[], description="Further environment variables of the operator.")
    extra_volumes: list[Object] = Field(default=[], description="Further volumes of the operator's pods.")
    extra_volume_mounts: list[Object] = Field(default=[], description="Where the operator mounts them.")
    extra_objects: list[Object] = Field(default=[], description="Further objects; templates inside are evaluated.")
    global_: Object = Field(default={}, alias="global", description="Set by parent charts; not read.")
