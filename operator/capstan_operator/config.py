"""What `python -m capstan_operator run --config FILE` is told: one YAML file, validated once, then frozen.

The chart writes this file. What a turn of the loop needs lies in `settings`, which knows no cluster; a file may set the
little of it that people have a reason to set.
"""

import os
import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, ValidationError

from capstan_api.contract import Contract, Distinct, Name, ObjectName, Rule
from capstan_api.fetch_args import SourceEndpoint
from capstan_api.manifest import InvalidResource, explain, read_document, to_json
from capstan_api.structural import structural
from capstan_operator.budgets import AcceleratorBudget
from capstan_operator.errors import InvalidConfig
from capstan_operator.settings import OperatorSettings
from capstan_operator.world.kubernetes.installation import Installation

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_SHORTEST_KEY: Final = 32


class Images(Contract):
    """What is started for a resource."""

    engine: str = Field(min_length=1, description="Image of the engines.")
    operator: str = Field(min_length=1, description="Image of gateway and fetcher: the operator's own.")
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="For both images."
    )
    pull_secrets: list[ObjectName] = Field(
        default=[], description="Names of pull secrets in the resources' namespaces."
    )


class GatewayResources(Contract):
    """What each gateway may use."""

    cpu_millicores: int = Field(default=250, ge=10, description="CPU of each gateway.")
    memory_mebibytes: int = Field(default=256, ge=64, description="Memory of each gateway.")


class LeaseConfig(Contract):
    """How several operators agree on the one that acts."""

    enabled: bool = Field(default=True, description="Without a lease there must be one operator and never two.")
    name: Name = Field(default="capstan-operator", description="Name of the Lease.")
    namespace: Name | None = Field(default=None, description="Where it lies; in a pod, the pod's own namespace.")
    identity: str | None = Field(
        default=None, max_length=128, description="Name of this operator among its peers; in a pod, the pod's name."
    )
    duration_seconds: int = Field(default=15, ge=1, le=300, description="A lease that is not renewed ends after this.")
    renew_seconds: float = Field(
        default=3.0, gt=0, description="Time between renewals, and between looks of a standby."
    )
    margin_seconds: float = Field(
        default=5.0, gt=0, description="Writes stop so long before the lease ends: they may be slow to arrive."
    )

    rules = (
        Rule(
            cel="self.renewSeconds + self.marginSeconds < self.durationSeconds",
            holds=lambda c: c.renew_seconds + c.margin_seconds < c.duration_seconds,
            message="renewSeconds + marginSeconds must be below durationSeconds: a renewal must come in time",
        ),
    )


class Api(Contract):
    """How the API server is spoken to."""

    connect_timeout_seconds: float = Field(default=5.0, gt=0, description="For a connection.")
    request_timeout_seconds: float = Field(default=30.0, gt=0, description="For one request, watches aside.")
    max_concurrent_requests: int = Field(default=20, ge=1, le=1000, description="Requests at the same time.")


class SourceEndpoints(Contract):
    """Where models are fetched from when that is not the public server of a scheme."""

    hugging_face: SourceEndpoint | None = Field(default=None, description="Mirror of the hub for hf:// sources.")
    s3: SourceEndpoint | None = Field(default=None, description="Object store for s3:// sources.")


class Admission(Contract):
    """The admission webhook. It is served where there are files."""

    certificate_file: Path | None = Field(default=None, description="Certificate of the admission webhook, PEM.")
    key_file: Path | None = Field(default=None, description="The certificate's private key, PEM.")
    host: str = Field(default="0.0.0.0", description="Address of the webhook's port.")  # noqa: S104 - a pod's own
    port: int = Field(default=8443, ge=0, le=65535, description="Port of the webhook.")

    rules = (
        Rule(
            cel="has(self.certificateFile) == has(self.keyFile)",
            holds=lambda a: (a.certificate_file is None) == (a.key_file is None),
            message="certificateFile and keyFile belong together",
        ),
    )


class OperatorConfig(Contract):
    """The whole file."""

    watch_namespaces: list[Name] = Field(default=[], description="Namespaces to look after; empty for all of them.")
    key_file: Path = Field(
        default=Path("/etc/capstan/key"), description="At least 32 bytes; tokens of admin ports are computed from it."
    )
    images: Images = Field(description="What is started.")
    gateway: GatewayResources = Field(default=GatewayResources(), description="What each gateway may use.")
    pod_monitor_labels: dict[str, str] = Field(
        default={}, description="Further labels of each resource's PodMonitor, by which a Prometheus selects monitors."
    )
    lease: LeaseConfig = Field(default=LeaseConfig(), description="Which of several operators acts.")
    api: Api = Field(default=Api(), description="How the API server is spoken to.")
    health_host: str = Field(default="0.0.0.0", description="Address of the health port.")  # noqa: S104 - a pod's own
    health_port: int = Field(default=8080, ge=0, le=65535, description="Port of /livez, /readyz and /metrics.")
    admission: Admission = Field(default=Admission(), description="The admission webhook.")
    source_endpoints: SourceEndpoints = Field(default=SourceEndpoints(), description="Where models are fetched from.")
    accelerator_budgets: Annotated[list[AcceleratorBudget], Distinct(by="name")] = Field(
        default=[],
        description="Accelerators that resources share, divided by what each earns in attainment; a resource shares in"
        " the first that fits it.",
    )
    turn_interval_seconds: float = Field(
        default=1.0, gt=0, description="Time between two turns of a resource; it grows when they are many."
    )
    cpu_share: float = Field(
        default=0.5, gt=0, le=64, description="Processors that this process may use before turns become rarer."
    )
    resync_seconds: float = Field(default=60.0, gt=0, description="Time between two comparisons with the API server.")
    max_blind_seconds: float = Field(
        default=180.0, gt=0, description="Liveness fails when a watch has not been heard for so long."
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level shown.")
    log_format: Literal["json", "text"] = Field(default="json", description="A JSON object a line, or plain text.")

    def settings(self) -> OperatorSettings:
        """What every loop goes by."""
        return OperatorSettings(turn_interval_s=self.turn_interval_seconds)

    def installation(self) -> Installation:
        """What the objects of a resource need to know."""
        return Installation(
            engine_image=self.images.engine,
            operator_image=self.images.operator,
            pull_policy=self.images.pull_policy,
            pull_secrets=tuple(self.images.pull_secrets),
            gateway_cpu_millicores=self.gateway.cpu_millicores,
            gateway_memory_mebibytes=self.gateway.memory_mebibytes,
            operator_namespace=own_namespace(),
            pod_monitor_labels=self.pod_monitor_labels,
            hugging_face=self.source_endpoints.hugging_face,
            s3=self.source_endpoints.s3,
        )

    def key(self) -> bytes:
        """The operator's own key. Raises `InvalidConfig`."""
        try:
            key = self.key_file.read_bytes().strip()
        except OSError as error:
            raise InvalidConfig(f"keyFile: {self.key_file} cannot be read: {error.strerror}") from None
        if len(key) < _SHORTEST_KEY:
            raise InvalidConfig(f"keyFile: {self.key_file} has {len(key)} bytes; at least {_SHORTEST_KEY} are needed")
        return key

    def lease_namespace(self) -> str:
        """Where the lease lies. Raises `InvalidConfig` outside of a cluster when it is not said."""
        namespace = self.lease.namespace or own_namespace()
        if namespace is None:
            raise InvalidConfig("lease.namespace: required when the operator does not run in a pod")
        return namespace

    def identity(self) -> str:
        """Name of this operator.

        A pod's name is enough in a cluster: when its container is started again, the old one has ended, and the new
        one may go on with the lease at once.
        """
        if self.lease.identity:
            return self.lease.identity
        return socket.gethostname() if own_namespace() else f"{socket.gethostname()}-{os.getpid()}"


def read_config(path: Path) -> OperatorConfig:
    """The configuration in a YAML file; raises `InvalidConfig` with one line per fault."""
    try:
        text = to_json(read_document(path))
    except OSError as error:
        raise InvalidConfig(f"{path}: {error.strerror}") from None
    except InvalidResource as error:
        raise InvalidConfig(f"{path}: {str(error).removeprefix(f'{path} ')}") from None
    try:
        return OperatorConfig.model_validate_json(text)
    except ValidationError as error:
        schema = structural(OperatorConfig)
        faults = [explain(dict(fault), schema) for fault in error.errors(include_url=False)]
        raise InvalidConfig("\n".join(f"{path}: {fault}" for fault in faults)) from None


def own_namespace() -> str | None:
    """Namespace of the pod that this runs in; None outside of a cluster."""
    try:
        return _NAMESPACE_FILE.read_text().strip() or None
    except OSError:
        return None
