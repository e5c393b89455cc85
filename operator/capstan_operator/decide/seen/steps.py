"""Engine steps as their samples tell them: one as a value, many as the rows of an array, and which are believed.

Knows no engine. The surprising idea: the newest of many steps say as much as all of them, if the choice is even and
each of them stands for its share of the others.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Annotated, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from capstan_operator.decide.curve import Array, Packed, everywhere
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


def _whole(raw: bytes) -> bytes:
    if len(raw) % ROW_BYTES:
        raise ValueError(f"steps are rows of {ROW_BYTES} bytes, and {len(raw)} are no whole number of them")
    return raw


Steps = Annotated[Packed, AfterValidator(_whole)]
"""Samples in the order of their steps, each number in eight bytes."""
ROW_BYTES: Final = 8 * len(StepSample._fields)
"""Of each of them."""
_NONE: Final = np.zeros(1, dtype=np.int64)
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


def packed(samples: Iterable[Iterable[float]]) -> bytes:
    """The samples as `Steps`."""
    return np.fromiter(chain.from_iterable(samples), np.float64).tobytes()


def rows(steps: bytes) -> Array:
    """[M, 7] The steps, a `StepSample` in each row."""
    return np.frombuffer(steps).reshape(-1, len(StepSample._fields))


def are_believable(steps: Array) -> NDArray[np.bool_]:
    """[N] Whether any engine could have taken such steps [N, 7]: it computes no more than an envelope may allow."""
    # Neither NaN nor an infinity lies between the two.
    sane = (steps >= 0) & (steps <= _MOST)
    short: NDArray[np.bool_] = steps[:, 6] <= _LONGEST_CONTEXT * steps[:, 3]
    return short if everywhere(sane) else short & np.logical_and.reduce(sane, axis=1)


def chosen(steps: Array, num_steps: NDArray[np.int64], last_steps: Array, most: int) -> tuple[Array, Array]:
    """Of each engine an even choice of the steps that are newer than its last one that was seen, at most so many and
    oldest first, as rows [M, 7]; and how many steps each of them stands for [M]. Unbelievable ones are left out.

    `steps` are those of N engines, of which the first took `num_steps[0]`, and so on; `last_steps` is [N].
    """
    ends = num_steps.cumsum()
    num_newer = np.concatenate([_NONE, (steps[:, 0] > last_steps.repeat(num_steps)).cumsum()])
    # An engine tells its steps in their order, so that the new ones are its last.
    num_new = num_newer[ends] - num_newer[ends - num_steps]
    stride = np.maximum(1, -(-num_new // most))
    num_picked = -(-num_new // stride)
    owners = np.arange(len(num_new)).repeat(num_picked)
    from_newest = (num_picked.cumsum() - 1)[owners] - np.arange(len(owners))
    picked = steps.take((ends - 1)[owners] - stride[owners] * from_newest, axis=0)
    believed = are_believable(picked)
    if not everywhere(believed):
        picked, owners = picked[believed], owners[believed]
        num_picked = np.bincount(owners, minlength=len(num_new))
    return picked, num_new[owners] / num_picked[owners]
