"""What a policy sees and what it answers: the seam between the simulated fleet and whoever steers it.

An observation holds only what can be scraped from gateways and engines. A policy may keep state; it is called every
`interval_s` simulated seconds, first after one interval, and not at all while its metrics are lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from capstan_api.limits import BatchLimits
from capstan_sim.router import Rule
from capstan_sim.step_time import StepModel


@dataclass(frozen=True, slots=True)
class Objective:
    """Thresholds of one SLO class in seconds, infinite where none is declared, and the share that must meet them."""

    ttft_s: float
    tpot_s: float
    percent: float = 99.0


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """One ready replica that is not draining."""

    running: int
    waiting: int
    waiting_tokens: int
    """Prompt tokens of the waiting requests."""
    kv_tokens: int
    """Held now."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The fleet at one moment. Windows reach back to 0 when less than their length has passed."""

    now: float
    ready: int
    starting: int
    draining: int
    target: int
    ttft_s: Sequence[float]
    """Of the first tokens in the last 60 s."""
    tpot_s: Sequence[float]
    """Of the requests that ended in the last 60 s."""
    gateway_queue: int
    """Requests that no replica has."""
    replicas: Sequence[ReplicaLoad]
    concurrency_6s: float
    """Mean number of requests that run or wait anywhere."""
    concurrency_60s: float
    arrival_rate: float
    """Requests/s of the last 60 s."""
    prompt_token_rate_10s: float
    """Of arrivals in the last 10 s."""
    arrivals: int
    """Since the beginning."""
    mean_prompt: float
    """Tokens, of the requests that ended in the last 60 s; 0 when none did."""
    mean_output: float
    """Likewise."""
    limits: BatchLimits

    @property
    def running(self) -> int:
        return sum(replica.running for replica in self.replicas)

    @property
    def waiting(self) -> int:
        """At replicas and at the gateway."""
        return sum(replica.waiting for replica in self.replicas) + self.gateway_queue

    @property
    def concurrency(self) -> int:
        return self.running + self.waiting

    @property
    def kv_tokens(self) -> int:
        return sum(replica.kv_tokens for replica in self.replicas)


@dataclass(frozen=True, slots=True)
class Target:
    """Wanted replicas, and limits for all of them; None leaves the limits as they are."""

    replicas: int
    limits: BatchLimits | None = None


class Policy(Protocol):
    """Steers a fleet by its number of replicas and its limits."""

    interval_s: float

    def decide(self, seen: Observation) -> Target:
        """What the fleet should be from now on; the simulator keeps it within 0 and the most replicas allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Setting:
    """What a policy may know beforehand. The mean lengths are those of the whole workload."""

    model: StepModel
    objective: Objective
    mean_prompt: float
    mean_output: float
    max_replicas: int
    cold_start_s: float
    initial_replicas: int
    limits: BatchLimits
    rule: Rule = Rule.GATEWAY
    """By which requests are given to replicas."""
