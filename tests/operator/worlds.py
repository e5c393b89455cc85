"""Small worlds to decide in: a deployment, observations of it, and a law that has already learnt."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from capstan_api.limits import BatchLimits, LimitsState
from capstan_api.metrics import Gateway as Series
from capstan_api.replicas import ReplicaEntry
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator.decide import Memory, Observation, render
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.progress import RolloutMemory
from capstan_operator.decide.seen.counters import ClassCounters, Histogram
from capstan_operator.decide.seen.observation import EngineMetrics, Gateway, GatewayMetrics, Phase, Replica
from capstan_operator.decide.seen.signals import Lengths
from capstan_operator.decide.seen.steps import StepSample, packed

NOW = 1_800_000_000.0
# Seconds for a step, its prefill token, its decoding sequence, a token of context and a pair: a small CPU model.
STEP_COSTS = (0.004, 0.0002, 0.001, 0.0, 0.0)


def deployment(*, scaling: dict[str, Any] | None = None, **spec: Any) -> InferenceDeployment:
    """One class with TTFT 1000 ms and TPOT 60 ms, one to two replicas, short windows; overridden by field."""
    document: dict[str, Any] = {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "web"},
        "spec": {
            "model": {"source": {"uri": "bundled://tiny"}, "maxModelLength": 4096},
            "engine": {
                "batching": {
                    "maxSequences": 32,
                    "maxBatchedTokens": 1024,
                    "minSequences": 4,
                    "minBatchedTokens": 64,
                },
                "kvCache": {"memoryMebibytes": 512},
            },
            "slos": [
                {
                    "name": "interactive",
                    "ttft": {"thresholdMilliseconds": 1000},
                    "tpot": {"thresholdMilliseconds": 60},
                    "objectivePercent": "95",
                }
            ],
            "scaling": {
                "minReplicas": 1,
                "maxReplicas": 2,
                "batchLimits": {"adjustmentIntervalSeconds": 3, "maxStepPercent": 25},
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 5},
                    "scaleDown": {"stabilizationWindowSeconds": 20},
                },
                "staleMetrics": {"maxAgeSeconds": 10},
                **(scaling or {}),
            },
            **spec,
        },
    }
    return parse(document)


def replica(
    of: InferenceDeployment, ordinal: int = 0, phase: Phase = Phase.READY, *, revision: str | None = None, **fields: Any
) -> Replica:
    """A replica as the world would show it; ready ones have metrics of `NOW` unless told otherwise."""
    revision = revision or render.revision(of)
    name = f"{of.metadata.name}-{revision}-{ordinal}"
    listens = phase in (Phase.READY, Phase.DRAINING)
    defaults: dict[str, Any] = {
        "created_at": NOW - 1000 + ordinal,
        "ready_at": NOW - 990 + ordinal if listens else None,
        "url": f"http://127.0.0.1:{9000 + ordinal}" if listens else None,
        "metrics": engine_metrics() if listens else None,
        "limits": limits_state(of) if listens else None,
    }
    return Replica(id=name, revision=revision, phase=phase, **{**defaults, **fields})


def engine_metrics(at: float = NOW, samples: Iterable[StepSample] = (), **fields: Any) -> EngineMetrics:
    return EngineMetrics(**{"at": at, "heartbeat": at, "kv_blocks": 4096.0, "samples": packed(samples), **fields})


def limits_state(
    of: InferenceDeployment, limits: BatchLimits | None = None, lease_s: float | None = None
) -> LimitsState:
    envelope = render.envelope(of)
    return LimitsState(
        limits=limits or envelope.top,
        defaults=envelope.top,
        envelope=envelope,
        version=1,
        lease_remaining_seconds=lease_s,
    )


def histogram(series: Any, *latencies: float) -> Histogram:
    bounds = series.bounds()
    counts = [float(sum(x <= b for x in latencies)) for b in bounds]
    return Histogram(bounds=bounds, counts=(*counts, float(len(latencies))))


def counters(
    requests: float = 0, *, ttft: float = 0.1, tpot: float = 0.02, prompt: int = 200, output: int = 50, bad: float = 0
) -> ClassCounters:
    """Cumulative counters after `requests` that all had these latencies and lengths."""
    return ClassCounters(
        arrived=requests,
        completed=requests,
        slo_total=requests,
        slo_good=requests - bad,
        prompt_tokens=requests * prompt,
        output_tokens=requests * output,
        ttft=histogram(Series.TTFT, *[ttft] * int(requests)),
        tpot=histogram(Series.TPOT, *[tpot] * int(requests)),
    )


def gateway(
    of: InferenceDeployment,
    replicas: tuple[Replica, ...] = (),
    counted: ClassCounters | None = None,
    name: str = "gateway",
    **fields: Any,
) -> Gateway:
    """A ready gateway that knows the ready ones of `replicas`; `fields` go to its metrics."""
    table = tuple(ReplicaEntry(id=r.id, url=r.url) for r in replicas if r.phase is Phase.READY and r.url)
    metrics = GatewayMetrics(**{"at": NOW, "classes": {"interactive": counted or counters()}, **fields})
    return Gateway(id=name, revision=render.gateway_revision(of), phase=Phase.READY, table=table, metrics=metrics)


def observation(
    of: InferenceDeployment,
    *replicas: Replica,
    at: float = NOW,
    counted: ClassCounters | None = None,
    with_gateway: bool = True,
    **gateway_metrics: Any,
) -> Observation:
    doors = (gateway(of, replicas, counted, **{"at": at, **gateway_metrics}),) if with_gateway else ()
    return Observation(
        at=at,
        replicas=tuple(sorted(replicas, key=lambda r: r.id)),
        gateways=doors,
        endpoint="http://127.0.0.1:8000",
        model_directory="/models/tiny",
    )


def samples(count: int = 60, start: int = 1, costs: tuple[float, ...] = STEP_COSTS) -> tuple[StepSample, ...]:
    """Steps of many shapes that cost exactly what `costs` say."""
    made = []
    for i in range(count):
        prefill, sequences = 64 * (i % 5), 1 + i % 13
        # Chunks early and late in prompts of 200 tokens.
        pairs = prefill * (32 + 136 * (i % 2))
        features = (1, prefill, sequences, sequences * 225, pairs)
        seconds = sum(c * x for c, x in zip(costs, features, strict=True))
        made.append(StepSample(start + i, float(i), seconds, prefill, sequences, sequences * 225, pairs))
    return tuple(made)


def taught(costs: tuple[float, ...] = STEP_COSTS) -> EngineModel:
    """A model that has seen such steps."""
    return EngineModel().learn(samples(120, costs=costs))


def learnt(of: InferenceDeployment, wanted: int = 1, **fields: Any) -> Memory:
    """The memory of a law that knows its engine, the lengths, wants so many replicas and has just set its limits."""
    release = render.release(of, Path("/models/tiny"))
    memory = Memory(
        at=NOW - 1,
        revision=release.revision,
        rollout=RolloutMemory(target=release.revision, stable=release, progress_at=NOW - 1),
        model=taught(),
        lengths=Lengths(prompt=200, output=50, weight=100),
    )
    replicas = memory.replicas.changed(wanted=wanted, active_at=NOW - 1)
    limits = memory.limits.changed(limits=render.envelope(of).top, adjusted_at=NOW)
    return memory.changed(replicas=replicas, limits=limits, **fields)
