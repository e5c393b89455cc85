"""From the resource to the arguments of its processes, and to the revision that tells whether they must be replaced.

Knows no ports, hosts or processors: the world that runs the processes fills those in. SLO classes are part of the
engine's arguments (it counts good requests against their thresholds), so that a new threshold is a new revision too;
`scaling` and `rollout` are not, and changing them restarts nothing.
"""

import hashlib
from pathlib import Path

from capstan_api.engine_args import EngineArgs, GatewayArgs, SloClass
from capstan_api.limits import Envelope
from capstan_api.spec import RoutingPolicy, Slo, Switch
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_operator.decide.lifelong import lifelong, lifelong_by
from capstan_operator.decide.values import Value

# Stands for a file that the world puts where it keeps step logs, one for each replica.
STEP_LOG = Path("steps.csv")


class Release(Value):
    """A revision with all that it takes to start a replica of it, also when the resource has moved on."""

    revision: str
    args: EngineArgs
    cpu_millicores: int


@lifelong_by
def release(deployment: InferenceDeployment, model_directory: str) -> Release:
    """What the resource asks for now."""
    return Release(
        revision=revision(deployment),
        args=engine_args(deployment, Path(model_directory)),
        cpu_millicores=deployment.spec.variant.resources.cpu_millicores,
    )


@lifelong
def envelope(deployment: InferenceDeployment) -> Envelope:
    batching = deployment.spec.engine.batching
    return Envelope(
        min_sequences=batching.min_sequences,
        max_sequences=batching.max_sequences,
        min_batched_tokens=batching.min_batched_tokens,
        max_batched_tokens=batching.max_batched_tokens,
    )


def engine_args(deployment: InferenceDeployment, model_directory: Path) -> EngineArgs:
    """The configuration of every replica of the deployment."""
    spec = deployment.spec
    cache = spec.engine.kv_cache
    return EngineArgs(
        model=model_directory,
        served_model_names=deployment.served_model_names,
        precision=spec.variant.precision,
        quantization=spec.variant.quantization,
        max_model_len=spec.model.max_model_length,
        envelope=envelope(deployment),
        block_size=cache.block_size,
        kv_cache_bytes=None if cache.memory_mebibytes is None else cache.memory_mebibytes << 20,
        memory_bytes=spec.variant.resources.memory_mebibytes << 20,
        prefix_caching=spec.engine.prefix_caching.mode is Switch.ENABLED,
        max_queued_requests=spec.engine.max_queued_requests,
        slo_classes=slo_classes(deployment),
        drain_timeout_seconds=spec.disruption.drain_timeout_seconds,
        metrics_compatibility=spec.observability.metrics_compatibility,
        step_log=STEP_LOG if spec.observability.step_log is Switch.ENABLED else None,
        num_threads=-(-spec.variant.resources.cpu_millicores // 1000),
    )


@lifelong
def gateway_args(deployment: InferenceDeployment) -> GatewayArgs:
    spec = deployment.spec
    return GatewayArgs(
        served_model_names=deployment.served_model_names,
        slo_classes=slo_classes(deployment),
        prefix_affinity=spec.routing.policy is RoutingPolicy.PREFIX_AWARE,
        max_held_requests=spec.routing.hold.max_requests,
        hold_timeout_seconds=spec.routing.hold.timeout_seconds,
        drain_timeout_seconds=spec.disruption.drain_timeout_seconds,
    )


def slo_classes(deployment: InferenceDeployment) -> tuple[SloClass, ...]:
    return tuple(_slo_class(slo) for slo in deployment.spec.slos)


@lifelong
def revision(deployment: InferenceDeployment) -> str:
    """Eight hex digits of everything that a replica cannot change while it runs."""
    spec = deployment.spec
    placed = (spec.model.source, spec.model.cache, spec.variant.resources, spec.scheduling)
    args = engine_args(deployment, Path("model"))
    return _digest(*("" if part is None else part.model_dump_json(exclude_defaults=True) for part in (*placed, args)))


@lifelong
def gateway_revision(deployment: InferenceDeployment) -> str:
    """Eight hex digits of everything that the gateway goes by; it takes another one over while it runs."""
    return _digest(gateway_args(deployment).model_dump_json())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _slo_class(slo: Slo) -> SloClass:
    return SloClass(
        name=slo.name,
        priority=slo.priority,
        ttft_seconds=slo.ttft.threshold_milliseconds / 1000 if slo.ttft else None,
        tpot_seconds=slo.tpot.threshold_milliseconds / 1000 if slo.tpot else None,
        header_value=slo.selector.header_value,
        model_alias=slo.selector.model_alias,
    )
