"""What the objects of a deployment need to know about the Capstan that is installed: images and places, no behaviour.

Filled from the operator's settings by whoever starts it. Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from capstan_api.fetch_args import SourceEndpoint
from capstan_api.model import ModelSource

COMPONENT_OPERATOR = "operator"


@dataclass(frozen=True)
class Installation:
    """Where images come from, and where the operator and its peers live."""

    engine_image: str
    operator_image: str
    """Holds the gateway and the fetcher too."""
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    gateway_cpu_millicores: int = 250
    gateway_memory_mebibytes: int = 256
    operator_namespace: str | None = None
    """None when the operator runs outside of the cluster: nothing can be opened for it by name then."""
    operator_labels: Mapping[str, str] = field(
        default_factory=lambda: {
            "app.kubernetes.io/name": "capstan",
            "app.kubernetes.io/component": COMPONENT_OPERATOR,
        }
    )
    pod_monitor_labels: Mapping[str, str] = field(default_factory=dict)
    """Further labels of each PodMonitor: many a Prometheus selects monitors by labels of its own."""
    hugging_face: SourceEndpoint | None = None
    """Server of hf:// sources, the public one when absent; likewise for s3://."""
    s3: SourceEndpoint | None = None

    def endpoint(self, source: ModelSource) -> SourceEndpoint | None:
        """The server that the source is fetched from, None for the public one of its scheme."""
        return self.hugging_face if source.uri.startswith("hf://") else self.s3

    def source_ports(self, source: ModelSource) -> tuple[int, ...]:
        """Ports at which the source is fetched, redirections included; none for a source that is not fetched."""
        if not source.is_fetched:
            return ()
        endpoint = self.endpoint(source)
        if endpoint is None:
            return (443,)
        first = urlsplit(endpoint.url)
        default = 443 if first.scheme == "https" else 80
        others = (urlsplit(f"//{host}").port for host in endpoint.redirect_hosts)
        return tuple(sorted({first.port or default, *(port or default for port in others)}))
