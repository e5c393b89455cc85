"""Engine steps as their samples tell them: one as a value, many as the rows of an array, and which are believed.

Knows no engine. The surprising idea: the newest of many steps say as much as all of them, if the choice is even and
each of them stands for its share of the others.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter
from typing import Annotated, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from capstan_operator.decide.curve import Array
from capstan_operator.decide.seen.counters import LARGEST_COUNT

_LONGEST_STEP_S: Final = 600.0
# The contract allows no envelope beyond a million tokens; contexts are bounded by what any memory holds.
_MOST_STEP_TOKENS, _MOST_CONTEXT_TOKENS, _LONGEST_CONTEXT = float(1 << 20), 1e9, 1e7
# A sample may say anything, but what does not fit 64 bits could not become part of a row.
_Int64 = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class StepSample(NamedTuple):
    """One engine step as the latency model sees it; the fields are those of the engine's `/admin/steps`."""

    number: _Int64
    time: float
    seconds: float
    prefill_tokens: _Int64
    decode_sequences: _Int64
    context_tokens: _Int64
    attention_pairs: float


# Of each field; the pairs are bounded by the prefill tokens that they belong to.
_MOST: Final[Array] = np.array(
    [
        LARGEST_COUNT,
        LARGEST_COUNT,
        _LONGEST_STEP_S,
        _MOST_STEP_TOKENS,
        _MOST_STEP_TOKENS,
        _MOST_CONTEXT_TOKENS,
        np.inf,
    ]
)


def rows(samples: Iterable[StepSample]) -> Array:
    """The samples as rows [N, 7]."""
    return np.fromiter(chain.from_iterable(samples), np.float64).reshape(-1, len(StepSample._fields))


def are_believable(steps: Array) -> NDArray[np.bool_]:
    """[N] Whether any engine could have taken such steps [N, 7]: it computes no more than an envelope may allow."""
    # Neither NaN nor an infinity lies between the two.
    sane: NDArray[np.bool_] = np.logical_and.reduce((steps >= 0) & (steps <= _MOST), axis=1)
    return sane & (steps[:, 6] <= _LONGEST_CONTEXT * steps[:, 3])


def chosen(samples: Iterable[Sequence[StepSample]], last_steps: Iterable[float], most: int) -> tuple[Array, Array]:
    """Of each engine an even choice of the steps that are newer than its last one that was seen, at most so many and
    oldest first, as rows [M, 7]; and how many steps each of them stands for [M]. Unbelievable ones are left out.
    """
    unseen = [_newer(told, last_step) for told, last_step in zip(samples, last_steps, strict=True)]
    num_unseen = list(map(len, unseen))
    picked = [told[:: -(-(-num // most) or 1)][::-1] for told, num in zip(unseen, num_unseen, strict=True)]
    steps = rows(chain.from_iterable(picked))
    owners = np.repeat(np.arange(len(picked)), list(map(len, picked)))
    believed = are_believable(steps)
    steps, owners = steps[believed], owners[believed]
    return steps, np.array(num_unseen)[owners] / np.bincount(owners)[owners]


def _newer(told: Sequence[StepSample], last_step: float) -> Sequence[StepSample]:
    """An engine tells its steps in their order."""
    if not told or told[0].number > last_step:
        return told
    return told[bisect_right(told, last_step, key=attrgetter("number")) :]
