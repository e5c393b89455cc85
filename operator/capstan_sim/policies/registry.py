"""Peers by name: `NAME`, `NAME:KNOB` or `static:N`.

The knob scales the load that one replica may carry: 1 is the published default, less is more cautious. Knows the
names and the knobs' range; each law is a module beside it.
"""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from capstan_sim.errors import SimulationError
from capstan_sim.policies.aibrix import AibrixApa
from capstan_sim.policies.chiron import Chiron
from capstan_sim.policies.dynamo import DynamoPlanner
from capstan_sim.policies.hpa import HpaConcurrency, HpaQueue, KedaSlo
from capstan_sim.policies.kpa import Kpa
from capstan_sim.policies.queueing import WvaQueueing
from capstan_sim.policies.saturation import LlmdSaturation, WvaTokens
from capstan_sim.policies.static import Static
from capstan_sim.policies.token_velocity import TokenVelocity
from capstan_sim.policy import Policy, Setting

PEERS: Mapping[str, Callable[[Setting, float], Policy]] = MappingProxyType(
    {
        "hpa_queue": HpaQueue,
        "hpa_concurrency": HpaConcurrency,
        "kpa": Kpa,
        "keda_slo": KedaSlo,
        "llmd_saturation": LlmdSaturation,
        "wva_tokens": WvaTokens,
        "wva_queueing": WvaQueueing,
        "dynamo_planner": DynamoPlanner,
        "aibrix_apa": AibrixApa,
        "token_velocity": TokenVelocity,
        "chiron": Chiron,
    }
)
STATIC = "static"
KNOBS = (1.0, 0.6, 0.35)
"""The knobs that the comparison runs."""


def build(text: str, setting: Setting, others: Iterable[str] = ()) -> Policy:
    """The policy that `text` names; raises SimulationError that says what may be written, with `others` before it."""
    name, _, argument = text.partition(":")
    if name == STATIC:
        return Static(_count(argument, setting.max_replicas))
    peer = PEERS.get(name)
    if peer is None:
        known = ", ".join([*others, *PEERS, f"{STATIC}:N"])
        raise SimulationError(f"policy {text!r}: unknown name {name!r}; known are {known}")
    return peer(setting, _knob(text, argument))


def _knob(text: str, argument: str) -> float:
    try:
        knob = float(argument or 1)
    except ValueError:
        knob = 0.0
    if not 0 < knob <= 10:
        raise SimulationError(f"policy {text!r}: the knob after the colon must be a number in (0, 10], such as 0.6")
    return knob


def _count(argument: str, max_replicas: int) -> int:
    if not argument.isdecimal() or not 1 <= int(argument) <= max_replicas:
        raise SimulationError(f"policy '{STATIC}:{argument}': the count must be an integer from 1 to {max_replicas}")
    return int(argument)
