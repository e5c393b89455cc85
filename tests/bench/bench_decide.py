"""How long one decision takes: a resource with 50 replicas, each of which took 20 steps since the last look.

    python tests/bench/bench_decide.py [--replicas 50] [--steps 20] [--interval 1] [--turns 300] [--profile]

Requests arrive and end in every turn, leases run, and the virtual fleets are in use, as they are in a fleet that
serves. Turns are as far apart as the operator's are unless it is told otherwise. Prints the processor time of the turns
after the first 60, and with `--profile` where it goes. One turn in a few feeds the virtual fleets and takes longer: the
mean is what a decision costs.
"""

import argparse
import cProfile
import pstats
import statistics
import time
from typing import Any

from capstan_api.limits import LimitsState
from capstan_api.metrics import Gateway as Series
from capstan_api.replicas import ReplicaEntry
from capstan_api.v1alpha1 import InferenceDeployment, parse
from capstan_operator import heap
from capstan_operator.config import OperatorConfig
from capstan_operator.decide import Memory, Observation, decide, render
from capstan_operator.decide.seen.counters import ClassCounters, Histogram
from capstan_operator.decide.seen.observation import EngineMetrics, Gateway, GatewayMetrics, Phase, Replica
from capstan_operator.decide.seen.steps import StepSample, packed

START = 1_800_000_000.0
WARM_UP_TURNS = 60
INTERVAL_S: float = OperatorConfig.model_fields["turn_interval_seconds"].default
PROMPT, OUTPUT, REQUESTS_PER_S = 800, 200, 1.5
STEP_S, SEQUENCES = 0.04, 16


def deployment(num_replicas: int) -> InferenceDeployment:
    return parse(
        {
            "apiVersion": "capstan.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "web"},
            "spec": {
                "model": {"source": {"uri": "bundled://tiny"}, "maxModelLength": 8192},
                "slos": [
                    {
                        "name": "interactive",
                        "ttft": {"thresholdMilliseconds": 1000},
                        "tpot": {"thresholdMilliseconds": 60},
                        "objectivePercent": "99",
                    }
                ],
                "scaling": {"minReplicas": num_replicas, "maxReplicas": num_replicas + 10},
            },
        }
    )


def observed(
    of: InferenceDeployment,
    memory: Memory,
    turn: int,
    num_replicas: int,
    num_steps: int,
    interval_s: float = INTERVAL_S,
) -> Observation:
    """One look at a fleet under a steady load, which obeys the limits that were decided last."""
    revision, envelope = render.revision(of), render.envelope(of)
    now = START + interval_s * turn

    def limits(name: str) -> LimitsState:
        decided = memory.limits.of(name) or envelope.top
        return LimitsState(
            limits=decided, defaults=envelope.top, envelope=envelope, version=1, lease_remaining_seconds=30.0
        )

    replicas = tuple(
        Replica(
            id=(name := f"web-{revision}-{i:03}"),
            revision=revision,
            phase=Phase.READY,
            created_at=START - 1000 + i,
            ready_at=START - 900 + i,
            url=f"http://10.0.0.{i}:8000",
            metrics=engine(turn, now, num_steps),
            limits=limits(name),
        )
        for i in range(num_replicas)
    )
    requests = REQUESTS_PER_S * interval_s * num_replicas * turn
    gateway = Gateway(
        id="gateway",
        revision=render.gateway_revision(of),
        phase=Phase.READY,
        table=tuple(ReplicaEntry(id=r.id, url=r.url or "") for r in replicas),
        metrics=GatewayMetrics(
            at=now, classes={"interactive": counted(requests)}, in_flight={r.id: 18.0 for r in replicas}
        ),
    )
    return Observation(
        at=now, replicas=replicas, gateways=(gateway,), endpoint="http://gateway", model_directory="/models/tiny"
    )


def engine(turn: int, now: float, num_steps: int) -> EngineMetrics:
    first = num_steps * (turn - 1) + 1
    samples = tuple(step(first + i, now) for i in range(num_steps))
    fields: dict[str, Any] = {"steps": num_steps * turn, "prefix_queries": 4800.0 * turn, "prefix_hits": 600.0 * turn}
    return EngineMetrics(
        at=now,
        heartbeat=now,
        running=SEQUENCES,
        waiting=2,
        kv_usage=0.05,
        kv_blocks=20000,
        busy_seconds=STEP_S * num_steps * turn,
        samples=packed(samples),
        **fields,
    )


def step(number: int, now: float) -> StepSample:
    # No stride through them meets only one kind.
    prefill, sequences = 128 * (number * number % 37 % 5), SEQUENCES + number * number % 23 % 7
    context = sequences * 900
    seconds = 0.008 + 2e-5 * prefill + 5e-4 * sequences + 1e-7 * context
    return StepSample(number, now, seconds, prefill, sequences, context, 400.0 * prefill)


def counted(requests: float) -> ClassCounters:
    """Counters after so many requests, one in 200 of which was late."""
    good = requests * 199 / 200
    return ClassCounters(
        arrived=requests,
        arrived_tokens=requests * PROMPT,
        completed=requests,
        slo_total=requests,
        slo_good=good,
        prompt_tokens=requests * PROMPT,
        output_tokens=requests * OUTPUT,
        ttft=Histogram(bounds=Series.TTFT.bounds(), counts=rising(len(Series.TTFT.bounds()), good, requests)),
        tpot=Histogram(bounds=Series.TPOT.bounds(), counts=rising(len(Series.TPOT.bounds()), good, requests)),
    )


def rising(num_bounds: int, good: float, total: float) -> tuple[float, ...]:
    return (*(good * (i + 1) / num_bounds for i in range(num_bounds)), total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=50)
    parser.add_argument("--steps", type=int, default=20, help="of each replica since the last look")
    parser.add_argument("--interval", type=float, default=INTERVAL_S, help="seconds between two turns")
    parser.add_argument("--turns", type=int, default=300)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    of, memory = deployment(arguments.replicas), Memory()
    heap.settle()
    profile, milliseconds = cProfile.Profile(time.thread_time), []
    for turn in range(WARM_UP_TURNS + arguments.turns):
        observation = observed(of, memory, turn + 1, arguments.replicas, arguments.steps, arguments.interval)
        if arguments.profile and turn >= WARM_UP_TURNS:
            profile.enable()
        began = time.thread_time()
        decision = decide(of, observation, memory, observation.at)
        took_s = time.thread_time() - began
        profile.disable()
        memory = decision.memory
        if turn >= WARM_UP_TURNS:
            milliseconds.append(1000 * took_s)
    quantiles = statistics.quantiles(milliseconds, n=100)
    what = f"{arguments.replicas} replicas, {arguments.steps} steps of each, a turn every {arguments.interval:g} s"
    parts = (("median", 49), ("10 %", 9), ("90 %", 89), ("99 %", 98))
    told = ", ".join(f"{name} {quantiles[place]:.2f}" for name, place in parts)
    print(f"{what}: mean {statistics.fmean(milliseconds):.2f} ms, {told}")
    if arguments.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


if __name__ == "__main__":
    main()
