"""How often the loops may turn, so that many resources cannot take a whole processor.

Reads no clock: it is told the processor time used and the time passed. The surprising idea: turns are not measured one
by one, because they interleave; what the whole process uses is what a node has to bear.
"""


class Pace:
    """Stretches the interval between turns while the process uses more than its share, and relaxes it slowly."""

    def __init__(self, interval_s: float, share: float, *, longest_s: float = 60.0) -> None:
        """`share` is in processors: 0.5 is half of one."""
        self._shortest_s = interval_s
        self._share = share
        self._longest_s = max(longest_s, interval_s)
        self.interval_s = interval_s

    def used(self, cpu_s: float, elapsed_s: float) -> None:
        """The process used `cpu_s` of processor time within the last `elapsed_s`."""
        load = cpu_s / elapsed_s / self._share
        # Up at once, down by a fifth at most: a start-up or a storm must not be followed by a second one.
        stretched = self.interval_s * max(min(load, 4.0), 0.8)
        self.interval_s = min(max(stretched, self._shortest_s), self._longest_s)
