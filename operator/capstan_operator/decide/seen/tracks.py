"""What each engine process had counted when it was looked at last: a difference to it is what was done since.

Judges nothing: the metrics have been believed. The surprising idea: a track is of a process and not of a name, so that
one that restarted under its name counts from zero.
"""

from typing import Final, NamedTuple

from capstan_operator.decide.seen.observation import EngineMetrics, Replica

_HITS_HALF_LIFE_S: Final = 60.0
_NOTHING: Final = (0.0, 0.0, 0.0, 0.0)


class Track(NamedTuple):
    """The last believable counters of one replica."""

    created_at: float
    restarts: int
    at: float
    heartbeat: float
    advanced_at: float
    """When the heartbeat was last seen to move."""
    last_step: int = 0
    busy_seconds: float = 0
    prefix_queries: float = 0
    prefix_hits: float = 0
    recent_hits: float = 0
    """Prompt tokens found in the prefix cache, forgotten by half every `_HITS_HALF_LIFE_S`."""
    slo_total: float = 0
    slo_good: float = 0
    ttft_good: float = 0
    tpot_good: float = 0

    def is_of(self, replica: Replica) -> bool:
        """Whether it is the same process: another one under the same id counts from zero."""
        return self.created_at == replica.created_at and self.restarts == replica.restarts

    @classmethod
    def after(cls, replica: Replica, metrics: EngineMetrics, before: "Track | None") -> "Track":
        """The track after one more look; `before` is that of the same process, if there was one."""
        at, samples = metrics.at, metrics.samples
        advanced_at, last_step, recent_hits = at, 0, 0.0
        if before is not None:
            last_step = before.last_step
            if metrics.heartbeat == before.heartbeat:
                advanced_at = before.advanced_at
            if at >= before.at:
                kept = 0.5 ** ((at - before.at) / _HITS_HALF_LIFE_S)
                recent_hits = before.recent_hits * kept + max(0.0, metrics.prefix_hits - before.prefix_hits)
        if samples:
            last_step = max(last_step, samples[-1].number)
        return cls(
            replica.created_at,
            replica.restarts,
            at,
            metrics.heartbeat,
            advanced_at,
            last_step,
            metrics.busy_seconds,
            metrics.prefix_queries,
            metrics.prefix_hits,
            recent_hits,
            metrics.slo_total,
            metrics.slo_good,
            metrics.ttft_good,
            metrics.tpot_good,
        )

    def since(self, before: "Track | None") -> tuple[float, float, float, float]:
        """Seconds, busy ones, prefix queries and hits; nothing when any of them ran backwards."""
        if before is None:
            return _NOTHING
        passed = (
            self.at - before.at,
            self.busy_seconds - before.busy_seconds,
            self.prefix_queries - before.prefix_queries,
            self.prefix_hits - before.prefix_hits,
        )
        return passed if min(passed) >= 0 else _NOTHING
