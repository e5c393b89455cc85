"""One number for each virtual fleet of the bank, from half a replica to more than anybody has.

The fleets' sizes grow by a fixed ratio, so that a fleet of two is as finely resolved as one of two hundred. The last
one is so large that nothing ever queues: what it misses is beyond the reach of replicas. In front of them all is one
that always has as many replicas as are really ready, and so tells what the real one is expected to miss. A curve
travels as bytes: a bank holds thousands of numbers, and as text they would outweigh everything else that is remembered.
"""

from base64 import b64decode, b64encode
from collections.abc import Sequence
from functools import cache
from math import ceil, log
from typing import Annotated, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, PlainSerializer

SMALLEST: Final = 0.5
NUM_BYTES: Final = 4
"""Of each value in a curve."""
_RATIO: Final = 1.04
# Beyond the most replicas that are allowed, for the margin that a fleet of virtual ones is judged with.
_REACH: Final = 2.0
_BOUNDLESS: Final = 1000.0

Array = NDArray[np.float64]


def _bytes(value: Any) -> Any:
    return b64decode(value) if isinstance(value, str) else value


Packed = Annotated[
    bytes, BeforeValidator(_bytes), PlainSerializer(lambda raw: b64encode(raw).decode(), when_used="json")
]
"""Numbers as bytes; in JSON as base64."""
Curve = Packed
"""Values of all fleets in four bytes each."""


@cache
def sizes(max_replicas: int) -> Array:
    """[F] The virtual fleets' sizes in replicas; that of the first one follows the real fleet and is 0 here."""
    largest = max(1.0, _REACH * max_replicas)
    exponents = np.arange(ceil(log(largest / SMALLEST) / log(_RATIO)) + 1)
    made: Array = np.concatenate([[0.0], SMALLEST * _RATIO**exponents, [_BOUNDLESS * largest]])
    made.setflags(write=False)
    return made


def everywhere(mask: NDArray[np.bool_]) -> bool:
    """Whether all of it is true: asked of small arrays, whose own `all` takes five times as long."""
    return b"\0" not in mask.tobytes()


def curve(values: Array | NDArray[np.float32]) -> bytes:
    return values.astype("<f4").tobytes()


def curves(rows: Array | NDArray[np.float32]) -> tuple[bytes, ...]:
    """One curve for each row of [N, F]."""
    together, size = curve(rows), NUM_BYTES * rows.shape[1]
    return tuple([together[i : i + size] for i in range(0, len(together), size)])


def values(raw: bytes, num_fleets: int) -> Array:
    """[F] The curve for so many fleets: larger ones than it had behave as the largest but the boundless one did."""
    known = np.frombuffer(raw, dtype="<f4").astype(np.float64)
    if not len(known):
        return np.zeros(num_fleets)
    if len(known) != num_fleets:
        body = known[: num_fleets - 1] if len(known) > num_fleets else known[:-1]
        return np.concatenate([body, np.full(num_fleets - 1 - len(body), body[-1]), known[-1:]])
    return known


def rows(curves: Sequence[bytes], num_fleets: int) -> NDArray[np.float32]:
    """[N, F] The `values` of each curve, as exact as they are kept."""
    size = NUM_BYTES * num_fleets
    together = b"".join([raw if len(raw) == size else curve(values(raw, num_fleets)) for raw in curves])
    return np.frombuffer(together, dtype="<f4").reshape(len(curves), num_fleets)
