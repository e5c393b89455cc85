"""Random numbers that depend on nothing but a request's seed and the position drawn for.

No generator state: a counter-based hash. So a token does not depend on what else is in the batch, on preemption, or on
how often its step was repeated.
"""

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, position: int) -> float:
    """In [0, 1), 52 bits: SplitMix64 (Steele, Lea and Flood, 2014) at counter `position` of a stream made from `seed`.

    52 bits and not 53, so that `uniform * total < total` for every positive double.
    """
    return (_mix((_mix(seed & _MASK) + (position + 1) * _GAMMA) & _MASK) >> 12) * 2.0**-52


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
