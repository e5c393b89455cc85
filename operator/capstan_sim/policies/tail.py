"""The tail of what was measured in a window: all that a percentile-driven peer knows of latency."""

from collections.abc import Sequence

import numpy as np


def p95(samples: Sequence[float]) -> float:
    """95th percentile in the unit of the samples; 0 without any."""
    return float(np.percentile(samples, 95)) if len(samples) else 0.0
