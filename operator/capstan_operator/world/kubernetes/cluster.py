"""What the worlds of all InferenceDeployments share: one API server, one store, one installed Capstan."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from capstan_operator.bounded_http import BoundedHttp
from capstan_operator.world.kubernetes.api import KubernetesApi
from capstan_operator.world.kubernetes.children import ServedKinds
from capstan_operator.world.kubernetes.installation import Installation
from capstan_operator.world.kubernetes.store import Store


@dataclass
class Cluster:
    """Made once in the life of an operator."""

    api: KubernetesApi
    store: Store
    installation: Installation
    key: bytes
    """The operator's own key, which the tokens of all admin ports are computed from."""
    http: BoundedHttp
    instance: str
    """Name of this operator process, as Events give it."""
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    kinds: ServedKinds = field(init=False)

    def __post_init__(self) -> None:
        self.kinds = ServedKinds(self.api, clock=self.clock)
