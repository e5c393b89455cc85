"""What stands around the pods of one InferenceDeployment: Services, Secret, policies, budget, monitors.

Not even compared while neither the resource nor a pod gives reason to: a deployment at rest costs nothing but one look
at each object now and then.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Final

from capstan_api.spec import Switch
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.world.kubernetes import gateway, network, optional, phases
from capstan_operator.world.kubernetes.access import (
    DISRUPTION_BUDGETS,
    INFERENCE_POOLS,
    NETWORK_POLICIES,
    POD_MONITORS,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from capstan_operator.world.kubernetes.api import Manifest
from capstan_operator.world.kubernetes.children import Children
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.identity import Identity
from capstan_operator.world.kubernetes.steps import Step, take
from capstan_operator.world.kubernetes.token import admin_secret

# How long a pod may miss the Secret before ours is applied again.
_DOUBT_S: Final = 30.0


class Surroundings:
    """Of one InferenceDeployment, whose admin ports have `token`."""

    def __init__(self, cluster: Cluster, identity: Identity, children: Children, token: str) -> None:
        self._cluster = cluster
        self._identity = identity
        self._children = children
        self._token = token
        # What was last compared with what is wanted, and when that has to be done again.
        self._kept_for: tuple[int, int, int] | None = None
        self._look_again_at = 0.0

    async def keep(self, deployment: InferenceDeployment, pods: Sequence[Manifest], wanted: int) -> None:
        """Have them as `deployment` says for these engine pods, of which so many are `wanted`. Raises `WorldError`."""
        if any(phases.needs_configuration(pod) for pod in pods):
            self._children.doubt(SECRETS, self._identity.admin_secret, older_than_s=_DOUBT_S)
        # A pod that is evicted counts until its successor is there: else each eviction would permit the next one. One
        # that cannot be made does not: it would keep the others on their nodes for ever.
        num_kept = min(wanted, len(pods))
        occasion = (deployment.metadata.generation, num_kept, self._children.doubts)
        if occasion == self._kept_for and self._cluster.clock() < self._look_again_at:
            return
        await take(self._steps(deployment, num_kept))
        self._kept_for = occasion
        self._look_again_at = self._cluster.clock() + self._children.look_again_s

    def _steps(self, deployment: InferenceDeployment, num_kept: int) -> Iterable[Step]:
        """Everything to be had or to be rid of, one step each."""
        identity, spec, installation = self._identity, deployment.spec, self._cluster.installation
        keep, remove = self._children.keep, self._children.remove
        yield partial(keep, SERVICE_ACCOUNTS, gateway.service_account(identity))
        yield partial(self._children.keep_unread, SECRETS, admin_secret(identity, self._token))
        yield partial(keep, SERVICES, gateway.service(identity))
        yield partial(keep, SERVICES, gateway.engines_service(identity))
        policy = network.engine_policy(
            identity,
            installation,
            source_ports=installation.source_ports(spec.model.source),
            scraped=spec.observability.pod_monitor is Switch.ENABLED,
            pooled=spec.routing.inference_pool is Switch.ENABLED,
        )
        yield partial(keep, NETWORK_POLICIES, policy)
        yield partial(keep, NETWORK_POLICIES, network.gateway_policy(identity, installation))
        for resource, switch, manifest in (
            (DISRUPTION_BUDGETS, spec.disruption.budget, optional.disruption_budget(identity, num_kept)),
            (POD_MONITORS, spec.observability.pod_monitor, optional.pod_monitor(identity, installation)),
            (INFERENCE_POOLS, spec.routing.inference_pool, optional.inference_pool(identity)),
        ):
            if switch is Switch.DISABLED:
                yield partial(remove, resource, identity.name)
            elif resource != DISRUPTION_BUDGETS or num_kept:
                # A budget of nobody protects nobody: it is written when there is one, and left as it is at zero.
                yield partial(keep, resource, manifest)
