"""What engines told in one look, in columns: a turn asks the same of all of them.

Believes nothing by itself; `judgement` takes out what may not be believed. The surprising idea: fifty replicas in one
array cost little more than one.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain, compress
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capstan_operator.decide.curve import Array
from capstan_operator.decide.seen.observation import MEASURED, Replica
from capstan_operator.decide.seen.steps import StepSample, rows

COLUMNS: Final = {name: column for column, name in enumerate(MEASURED)}
_NO_STEP: Final = StepSample(0, 0.0, 0.0, 0, 0, 0, 0.0)


class Engines:
    """Row i is what `replicas[i]` told."""

    def __init__(self, replicas: Sequence[Replica], numbers: Array, samples: Sequence[Sequence[StepSample]]) -> None:
        """`numbers` is [N, 15], the fields of `EngineMetrics` before its `samples`, which are those of each replica."""
        self.replicas, self.numbers, self.samples = replicas, numbers, samples
        self.ids = tuple([replica.id for replica in replicas])

    @classmethod
    def of(cls, replicas: Iterable[Replica]) -> "Engines":
        """Those of the replicas that told anything."""
        told = [(replica, metrics) for replica in replicas if (metrics := replica.metrics) is not None]
        numbers = np.fromiter(chain.from_iterable([metrics.numbers for _, metrics in told]), np.float64)
        return cls([r for r, _ in told], numbers.reshape(-1, len(COLUMNS)), [metrics.samples for _, metrics in told])

    def only(self, which: NDArray[np.bool_], with_steps: NDArray[np.bool_]) -> "Engines":
        """The engines of `which` [N], and no steps but `with_steps` [N]."""
        samples = [told if real else () for told, real in zip(self.samples, with_steps.tolist(), strict=True)]
        kept = which.tolist()
        return Engines(list(compress(self.replicas, kept)), self.numbers[which], list(compress(samples, kept)))

    def column(self, name: str) -> Array:
        """[N] That field of all."""
        column: Array = self.numbers[:, COLUMNS[name]]
        return column

    @property
    def sums(self) -> dict[str, float]:
        """Of all, by field."""
        return dict(zip(COLUMNS, np.add.reduce(self.numbers, axis=0).tolist(), strict=True))

    @cached_property
    def last_steps(self) -> Array:
        """[N, 7] The newest step of each as rows of `StepSample`; zeros where none was told."""
        return rows([told[-1] if told else _NO_STEP for told in self.samples])

    def __len__(self) -> int:
        return len(self.replicas)
