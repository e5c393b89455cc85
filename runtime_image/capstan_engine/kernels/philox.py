"""Random numbers that depend on nothing but a request's seed and the position drawn for.

No generator state: a counter-based function, the same on every backend. So a token does not depend on what else is in
the batch, on preemption, on how often its step was repeated, or on the kind of processor.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
_ROUNDS = 10


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each pair: 26 bits each of the first two words of Philox.

    52 bits and not 53, so that `uniform * total < total` for every positive double.
    """
    first, second, *_ = philox(
        np.array([seed & 0xFFFFFFFFFFFFFFFF for seed in seeds], np.uint64), np.array(positions, np.uint64)
    )
    high, low = (first >> np.uint64(6)).astype(np.float64), (second >> np.uint64(6)).astype(np.float64)
    numbers: NDArray[np.float64] = high * 2.0**-26 + low * 2.0**-52
    return numbers


def philox(keys: NDArray[np.uint64], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Philox4x32-10 (Salmon, Moraes, Dror and Shaw, 2011) with 64-bit keys and counters `[n]`: `[4, n]` 32-bit words.

    The upper half of the 128-bit counter is zero.
    """
    key = np.stack((keys & _LOW, keys >> _32))
    even = np.stack((counters & _LOW, np.zeros_like(counters)))  # words 0 and 2
    odd = np.stack((counters >> _32, np.zeros_like(counters)))  # words 1 and 3
    for _ in range(_ROUNDS):
        products = even * _MULTIPLIERS
        even, odd = (products >> _32)[::-1] ^ odd ^ key, (products & _LOW)[::-1]
        key = (key + _WEYL) & _LOW
    return np.stack((even[0], odd[0], even[1], odd[1]))
