"""Batch limits that move with the replicas, against the same law with limits that stay where the peers' are."""

import numpy as np
from scenes import resource, slo

from capstan_api.v1alpha1 import InferenceDeployment
from capstan_sim.measure import Summary, summary
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import LAW, REPLICAS_ONLY, WhatIf
from capstan_sim.workload import Workload

# Seconds for a step, its prefill token, its decoding sequence, a token of context and a pair: 70 B on four GPUs.
STEP_COSTS = (2.2e-2, 6.8e-5, 4e-5, 3e-8, 2.6e-9)


def chat(rate: float, seconds: float) -> Workload:
    """Answers of 220 tokens, to prompts some of which are so long that no step of 50 ms gets far with them."""
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.exponential(1 / rate, int(1.2 * rate * seconds)))
    times = times[times < seconds]
    prompts = np.clip(rng.lognormal(6.0, 1.2, len(times)), 1, 8192).astype(int)
    return Workload.of(times, prompts, np.maximum(1, rng.geometric(1 / 220, len(times))))


def deployment() -> InferenceDeployment:
    """TTFT 500 ms and TPOT 50 ms, and a look-back that fits into 20 minutes."""
    look_back = {"scaleDown": {"stabilizationWindowSeconds": 240}}
    return resource(
        "large",
        slo("chat", 500, 50),
        engine={},
        scaling={"minReplicas": 1, "maxReplicas": 24, "behavior": look_back},
    )


def played(policy: str) -> Summary:
    question = WhatIf(chat(6.0, 1200.0), deployment(), StepModel(*STEP_COSTS, 410_000), 60.0, 6)
    return summary(question.ask(policy), list(question.objectives.values()))


def test_where_long_steps_pay_moving_the_limits_saves_replicas_and_attains_more():
    joint, fixed = played(LAW), played(REPLICAS_ONLY)
    assert joint.gpu_hours < 0.9 * fixed.gpu_hours
    assert joint.attainment_percent > fixed.attainment_percent
    assert joint.limit_changes <= 4
