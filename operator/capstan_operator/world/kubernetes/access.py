"""Everything that the operator may ever ask of an API server, and why.

Knows no HTTP. `api` refuses what is not in `ACCESS` before it is sent, and the chart's roles are generated from it, so
that what the operator does, what it is allowed to do and what a reviewer reads are one table.

The surprising idea: Secrets can be written and never read. The admin token is computed from the operator's own key, and
applying it again is how it is checked.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from capstan_api import names


class Verb(StrEnum):
    """The verbs of Kubernetes' authorization, as far as they are used here. There is no wildcard."""

    GET = "get"
    LIST = "list"
    WATCH = "watch"
    CREATE = "create"
    UPDATE = "update"
    PATCH = "patch"
    DELETE = "delete"


class Where(StrEnum):
    """In which namespaces a rule must hold."""

    WATCHED = "watched"
    """All namespaces that are watched: a ClusterRole, or a Role in each of them."""
    OWN = "own"
    """The operator's own namespace only: always a Role."""


@dataclass(frozen=True)
class Resource:
    """One kind of object. All of them live in namespaces."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """Path of its group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"


@dataclass(frozen=True)
class Access:
    """What is done to one kind of object. `subresource` is empty for the object itself."""

    resource: Resource
    verbs: frozenset[Verb]
    reason: str
    subresource: str = ""
    where: Where = Where.WATCHED

    @property
    def rbac_name(self) -> str:
        return f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural


INFERENCE_DEPLOYMENTS: Final = Resource(names.GROUP, names.VERSION, names.PLURAL, names.KIND)
PODS: Final = Resource("", "v1", "pods", "Pod")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
SERVICES: Final = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
DISRUPTION_BUDGETS: Final = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
POD_MONITORS: Final = Resource("monitoring.coreos.com", "v1", "podmonitors", "PodMonitor")
INFERENCE_POOLS: Final = Resource("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")

_WATCHED = frozenset({Verb.GET, Verb.LIST, Verb.WATCH})
_APPLIED = frozenset({Verb.GET, Verb.CREATE, Verb.PATCH})
_OWNED = _APPLIED | {Verb.DELETE}

ACCESS: Final = (
    Access(INFERENCE_DEPLOYMENTS, _WATCHED, "the resources to be brought about; they are never written"),
    Access(
        INFERENCE_DEPLOYMENTS,
        frozenset({Verb.PATCH}),
        "what was observed and decided, and what must survive a restart",
        subresource="status",
    ),
    Access(
        PODS,
        _WATCHED | {Verb.CREATE, Verb.DELETE},
        "one pod for each replica: the operator chooses which one goes, and when",
    ),
    Access(DEPLOYMENTS, _WATCHED | {Verb.CREATE, Verb.PATCH}, "the gateway of each resource"),
    Access(
        CONFIG_MAPS,
        _OWNED | {Verb.LIST},
        "arguments of engines and gateway; listed by label, metadata only, to find those of forgotten revisions",
    ),
    Access(SECRETS, frozenset({Verb.CREATE, Verb.PATCH}), "the token of the admin ports; written and never read"),
    Access(SERVICES, _APPLIED, "the address that clients know, and the engines for monitoring"),
    Access(SERVICE_ACCOUNTS, _APPLIED, "an identity without rights for engines and gateway"),
    Access(NETWORK_POLICIES, _APPLIED, "who may speak to engines and gateway"),
    Access(
        DISRUPTION_BUDGETS, _OWNED, "one replica at a time leaves when nodes are drained; removed when switched off"
    ),
    Access(POD_MONITORS, _OWNED, "scraping, where the Prometheus operator is installed"),
    Access(INFERENCE_POOLS, _OWNED, "routing by the Gateway API, where its inference extension is installed"),
    Access(EVENTS, frozenset({Verb.CREATE}), "moments that people should see in `kubectl describe`"),
    Access(
        LEASES,
        frozenset({Verb.GET, Verb.CREATE, Verb.UPDATE}),
        "which of several operators acts",
        where=Where.OWN,
    ),
)


def allowed(verb: Verb, resource: Resource, subresource: str = "") -> bool:
    """Whether the table has it."""
    return any(rule.resource == resource and rule.subresource == subresource and verb in rule.verbs for rule in ACCESS)


def policy_rules(where: Where, table: Iterable[Access] = ACCESS) -> list[Mapping[str, Any]]:
    """`rules` of a Role or ClusterRole, one for each line of the table, in its order."""
    return [
        {
            "apiGroups": [rule.resource.group],
            "resources": [rule.rbac_name],
            "verbs": [verb.value for verb in Verb if verb in rule.verbs],
        }
        for rule in table
        if rule.where is where
    ]
