"""The gateways of one InferenceDeployment: a Deployment that starts them, and the configuration that they go by.

The surprising idea: whoever starts reads the ConfigMap, whoever runs is told on the admin port, and which of them goes
by what is not written down anywhere. After a restart of the operator each is asked once.
"""

from collections.abc import Sequence
from functools import partial

from pydantic import ValidationError

from capstan_api.engine_args import GatewayArgs
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.seen.observation import Phase
from capstan_operator.errors import AdminError, WorldError
from capstan_operator.world.base import GatewayFacts
from capstan_operator.world.kubernetes import gateway, phases
from capstan_operator.world.kubernetes.access import CONFIG_MAPS, DEPLOYMENTS
from capstan_operator.world.kubernetes.api import Manifest
from capstan_operator.world.kubernetes.children import Children
from capstan_operator.world.kubernetes.cluster import Cluster
from capstan_operator.world.kubernetes.identity import Component, Identity
from capstan_operator.world.kubernetes.patience import Patience
from capstan_operator.world.kubernetes.steps import take

# How long the watch may not show a Deployment that we applied before it is looked for.
_DOUBT_S = 30.0


class Gateways:
    """Of one InferenceDeployment, whose admin ports have `token`."""

    def __init__(
        self, cluster: Cluster, identity: Identity, children: Children, patience: Patience, token: str
    ) -> None:
        self._cluster = cluster
        self._identity = identity
        self._children = children
        self._patience = patience
        self._headers = {"Authorization": f"Bearer {token}"}
        # Runs of gateway containers by the revision of the configuration that they are known to go by.
        self._configured: dict[str, str] = {}
        self._wanted = False
        # What the Deployment was last compared for.
        self._kept_for: tuple[int, str] | None = None

    def facts(self) -> Sequence[GatewayFacts]:
        """All of them, or the Deployment itself while it has no pod."""
        facts = [phases.gateway(pod, self._revision_of(pod)) for pod in self._pods()]
        if not facts and (deployment := self._cluster.store.gateway(self._identity)) is not None:
            return [phases.unborn_gateway(deployment)]
        return facts

    async def ensure(self, deployment: InferenceDeployment, revision: str, args: GatewayArgs) -> None:
        """Have gateways that go by `args`, which is what `revision` names. Raises `WorldError`."""
        # The ConfigMap first: it is what the pods of the Deployment start with.
        config = gateway.config(self._identity, args)
        await self._patience("configuration", partial(self._children.keep, CONFIG_MAPS, config))
        self._wanted = True
        await self.keep(deployment)
        pods = self._pods()
        told = partial(take, [partial(self._tell, pod, revision, args) for pod in pods])
        await self._patience("telling", told)
        alive = {phases.incarnation(pod, gateway.GATEWAY) for pod in pods}
        self._configured = {run: known for run, known in self._configured.items() if run in alive}

    async def keep(self, deployment: InferenceDeployment) -> None:
        """Have the Deployment as it should be, once there is a configuration that its pods can start with."""
        if self._wanted or self._cluster.store.gateway(self._identity) is not None:
            await self._patience("gateway", partial(self._keep, deployment))

    async def _keep(self, deployment: InferenceDeployment) -> None:
        live = self._cluster.store.gateway(self._identity)
        if live is None:
            # Not seen by the watch: never made, deleted by somebody, or made a moment ago.
            self._children.doubt(DEPLOYMENTS, self._identity.gateway, older_than_s=_DOUBT_S)
        else:
            occasion = (deployment.metadata.generation, str(live["metadata"].get("resourceVersion")))
            if occasion == self._kept_for:
                return
            self._kept_for = None
        wanted = gateway.deployment(deployment, self._identity, self._cluster.installation)
        answer = await self._children.keep(DEPLOYMENTS, wanted, live)
        if answer is not None:
            self._cluster.store.take(DEPLOYMENTS, answer)
        elif live is not None:
            self._kept_for = occasion

    async def _tell(self, pod: Manifest, revision: str, args: GatewayArgs) -> None:
        facts = phases.gateway(pod, self._revision_of(pod))
        if facts.phase is Phase.READY and facts.admin_url is not None and facts.revision != revision:
            await self._configure(facts.admin_url, gateway.placed(args))
            self._configured[phases.incarnation(pod, gateway.GATEWAY)] = revision

    async def _configure(self, admin_url: str, args: GatewayArgs) -> None:
        """Have a gateway go by these arguments; one that does already is not told again."""
        url = f"{admin_url}/admin/config"
        http = self._cluster.http
        try:
            answer = await http.request("GET", url, headers=self._headers)
            if answer.status == 200 and _is(args, answer.body):
                return
            answer = await http.request("PUT", url, headers=self._headers, json=args.model_dump(mode="json"))
        except AdminError as error:
            raise WorldError(f"the gateway cannot be configured: {error}") from None
        if answer.status != 200:
            said = answer.body[:200].decode(errors="replace")
            raise WorldError(f"the gateway refuses its configuration with {answer.status}: {said}")

    def _revision_of(self, pod: Manifest) -> str:
        return self._configured.get(phases.incarnation(pod, gateway.GATEWAY), "")

    def _pods(self) -> list[Manifest]:
        return self._cluster.store.pods(self._identity, Component.GATEWAY)


def _is(args: GatewayArgs, body: bytes) -> bool:
    try:
        return GatewayArgs.model_validate_json(body) == args
    except ValidationError:
        return False
