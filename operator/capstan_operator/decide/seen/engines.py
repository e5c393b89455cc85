"""What engines told in one look, in columns: a turn asks the same of all of them.

Believes nothing by itself; `judgement` takes out what may not be believed. The surprising idea: fifty replicas in one
array cost little more than one.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, compress
from operator import itemgetter
from struct import pack
from typing import Final

import numpy as np
from numpy.typing import NDArray

from capstan_operator.decide.curve import Array, everywhere
from capstan_operator.decide.seen.observation import MEASURED, Replica
from capstan_operator.decide.seen.steps import ROW_BYTES, rows

COLUMNS: Final = {name: column for column, name in enumerate(MEASURED)}
_COUNTED: Final = itemgetter(*MEASURED)


class Engines:
    """Row i is what `replicas[i]` told."""

    def __init__(self, replicas: Sequence[Replica], numbers: Array, samples: Sequence[bytes]) -> None:
        """`numbers` is [N, 15], the fields of `EngineMetrics` before its `samples`, which are those of each replica."""
        self.replicas, self.numbers, self._samples = replicas, numbers, samples
        self.ids = tuple([replica.id for replica in replicas])
        self.steps = rows(b"".join(samples))
        """[M, 7] The steps of all, one engine's after the other's."""
        self.num_steps = np.array(list(map(len, samples)), dtype=np.int64) // ROW_BYTES
        """[N] Steps of each."""
        self.last_steps = _last(self.steps, self.num_steps)
        """[N, 7] The newest step of each; zeros where none was told."""

    @classmethod
    def of(cls, replicas: Iterable[Replica]) -> "Engines":
        """Those of the replicas that told anything."""
        told = [replica for replica in replicas if replica.metrics is not None]
        metrics = [vars(replica.metrics) for replica in told]
        counted = list(chain.from_iterable(map(_COUNTED, metrics)))
        # Many numbers of Python's own become an array faster as bytes.
        numbers = np.frombuffer(pack(f"{len(counted)}d", *counted)).reshape(-1, len(COLUMNS))
        return cls(told, numbers, [each["samples"] for each in metrics])

    def only(self, which: NDArray[np.bool_], with_steps: NDArray[np.bool_]) -> "Engines":
        """The engines of `which` [N], and no steps but `with_steps` [N]."""
        samples = [told if real else b"" for told, real in zip(self._samples, with_steps.tolist(), strict=True)]
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

    def __len__(self) -> int:
        return len(self.replicas)


def _last(steps: Array, num_steps: NDArray[np.int64]) -> Array:
    if not len(steps):
        return np.zeros((len(num_steps), steps.shape[1]))
    last = steps.take(num_steps.cumsum() - 1, axis=0)
    if not everywhere(some := num_steps > 0):
        last[~some] = 0.0
    return last
