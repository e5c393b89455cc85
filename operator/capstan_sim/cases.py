"""The development cases: which part of which trace, on which hardware, against which thresholds.

Their protocol (cut the window, drop long prompts, superpose clones) is the one that the published figures of other
autoscalers were measured in, so that numbers can be set side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from capstan_api import v1alpha1
from capstan_api.v1alpha1 import InferenceDeployment
from capstan_sim.policy import Objective
from capstan_sim.step_time import StepModel
from capstan_sim.what_if import WhatIf
from capstan_sim.workload import Workload, read

MAX_REPLICAS: Final = 24


@dataclass(frozen=True, slots=True)
class Case:
    """One workload with its hardware and thresholds; `trace` is a file name."""

    name: str
    trace: str
    profile: str
    clones: int
    objective: Objective
    initial_replicas: int
    window_s: tuple[float, float] | None = None
    max_prompt: int | None = None

    def workload(self, directory: Path, seed: int = 0) -> Workload:
        """The requests; `directory` is where the traces lie. No prompt token is cached."""
        requests = read(directory / self.trace).without_cache()
        if self.window_s is not None:
            requests = requests.window(*self.window_s)
        if self.max_prompt is not None:
            requests = requests.with_prompts_up_to(self.max_prompt)
        return requests.cloned(self.clones, seed)

    def question(
        self, directory: Path, cold_start_s: float, *, seed: int = 0, scaling: Mapping[str, Any] | None = None
    ) -> WhatIf:
        """The case as a question; `scaling` adds to or replaces fields of the resource's `spec.scaling`."""
        return WhatIf(
            workload=self.workload(directory, seed),
            deployment=self.deployment(**(scaling or {})),
            model=StepModel.named(self.profile),
            cold_start_s=cold_start_s,
            initial_replicas=self.initial_replicas,
        )

    def deployment(self, **scaling: Any) -> InferenceDeployment:
        """The resource that declares the case; `scaling` adds to or replaces fields of `spec.scaling`."""
        ttft_ms, tpot_ms = round(1000 * self.objective.ttft_s), round(1000 * self.objective.tpot_s)
        return v1alpha1.parse(
            {
                "apiVersion": "capstan.dev/v1alpha1",
                "kind": "InferenceDeployment",
                "metadata": {"name": self.name},
                "spec": {
                    "model": {"source": {"uri": "file:///models/simulated"}, "maxModelLength": 131072},
                    "engine": {
                        "batching": {
                            "minSequences": 8,
                            "maxSequences": 512,
                            "minBatchedTokens": 256,
                            "maxBatchedTokens": 4096,
                        },
                        "maxQueuedRequests": 100000,
                    },
                    "slos": [
                        {
                            "name": "default",
                            "ttft": {"percentile": 99, "thresholdMilliseconds": ttft_ms},
                            "tpot": {"percentile": 99, "thresholdMilliseconds": tpot_ms},
                            "objectivePercent": "99",
                        }
                    ],
                    "scaling": {"minReplicas": 1, "maxReplicas": MAX_REPLICAS, **scaling},
                    "disruption": {"drainTimeoutSeconds": 3600},
                },
            }
        )


_H100, _FOUR_H100 = "llama3-8b-h100", "llama3-70b-4xh100"
_DAY, _SLOW = "servegen-large-day.csv.gz", Objective(2.0, 0.1)
_TUNED: Final = (
    Case("az-conv", "azure23-conv.csv.gz", _FOUR_H100, 3, Objective(1.0, 0.1), 3),
    Case("sg-large", "servegen-large-2h.csv.gz", _FOUR_H100, 2, _SLOW, 9, (0, 5400), 8192),
    Case("sg-mid", "servegen-mid-3h.csv.gz", _FOUR_H100, 2, _SLOW, 6, (0, 7200), 8192),
    Case("mc-syn", "mooncake-synthetic.csv.gz", _H100, 3, Objective(5.0, 0.05), 9, None, 32768),
    Case("day", _DAY, _FOUR_H100, 1, _SLOW, 1, None, 8192),
)
# Windows that no constant of the law was chosen on.
_HELD_OUT: Final = (
    Case("large-end", "servegen-large-2h.csv.gz", _FOUR_H100, 2, _SLOW, 9, (5400, 7200), 8192),
    Case("mid-end", "servegen-mid-3h.csv.gz", _FOUR_H100, 2, _SLOW, 6, (7200, 10800), 8192),
    *(
        Case(f"day-{hour}h", _DAY, _FOUR_H100, 2, _SLOW, 9, (3600 * hour, 3600 * hour + 5400), 8192)
        for hour in (7, 12, 18, 22)
    ),
)
CASES: Final = {case.name: case for case in (*_TUNED, *_HELD_OUT)}
