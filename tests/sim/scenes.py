"""Resources and arrivals of the simulated tests."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from capstan_api.v1alpha1 import InferenceDeployment, parse

BATCHING = {"maxSequences": 256, "maxBatchedTokens": 2048, "minBatchedTokens": 128}


def slo(name: str, ttft_ms: int, tpot_ms: int | None = None, *, percentile: int = 99, **fields: Any) -> dict[str, Any]:
    """An SLO class, of whose requests as many must be good as the percentile says, unless another share is given."""
    made = {
        "name": name,
        "ttft": {"percentile": percentile, "thresholdMilliseconds": ttft_ms},
        "objectivePercent": str(percentile),
        **fields,
    }
    return made if tpot_ms is None else {**made, "tpot": {"percentile": percentile, "thresholdMilliseconds": tpot_ms}}


def resource(name: str, *slos: dict[str, Any], batching: dict[str, int] = BATCHING, **spec: Any) -> InferenceDeployment:
    """A resource of a model that only its step times are known of; `spec` says the rest."""
    return parse(
        {
            "apiVersion": "capstan.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": name},
            "spec": {
                "model": {"source": {"uri": "file:///models/simulated"}},
                "engine": {"batching": batching},
                "slos": list(slos),
                **spec,
            },
        }
    )


def poisson(rng: np.random.Generator, rate: Callable[[float], float], seconds: float) -> NDArray[np.float64]:
    """When requests of a Poisson process with `rate(t)` per second come: the arrivals at its highest rate, thinned."""
    highest = max(rate(at) for at in np.arange(0.0, seconds, 1.0))
    times = np.cumsum(rng.exponential(1 / highest, int(1.5 * highest * seconds) + 100))
    times = times[times < seconds]
    return times[rng.random(len(times)) < np.array([rate(at) for at in times]) / highest]
