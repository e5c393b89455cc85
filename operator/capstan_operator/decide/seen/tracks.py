"""What each engine process had counted when it was looked at last: a difference to it is what was done since.

Judges nothing: the metrics have been believed. The surprising idea: a track is of a process and not of a name, so that
one that restarted under its name counts from zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from operator import attrgetter
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from capstan_operator.decide.curve import Array, Packed, everywhere
from capstan_operator.decide.lifelong import lifelong
from capstan_operator.decide.seen.engines import COLUMNS, Engines
from capstan_operator.decide.seen.observation import Replica
from capstan_operator.decide.values import Value

_HITS_HALF_LIFE_S: Final = 60.0
_Process: TypeAlias = tuple[float, int]
_PROCESS: Final = attrgetter("created_at", "restarts")


class Track(NamedTuple):
    """The last believable counters of one replica."""

    created_at: float
    restarts: int
    at: float
    busy_seconds: float
    prefix_queries: float
    prefix_hits: float
    heartbeat: float
    slo_total: float
    slo_good: float
    ttft_good: float
    tpot_good: float
    advanced_at: float
    """When the heartbeat was last seen to move."""
    last_step: float
    recent_hits: float
    """Prompt tokens found in the prefix cache, forgotten by half every `_HITS_HALF_LIFE_S`."""

    def is_of(self, replica: Replica) -> bool:
        """Whether it is the same process: another one under the same id counts from zero."""
        return self.created_at == replica.created_at and self.restarts == replica.restarts


class Passed(NamedTuple):
    """What processes did between two looks, summed."""

    seconds: float
    busy_seconds: float
    prefix_queries: float
    prefix_hits: float


# A row of `Tracks` is a track without its process: what is copied of the metrics, what passes first, then the rest.
_ROW: Final = Track._fields[2:]
_AT, _HITS, _HEARTBEAT, _ADVANCED_AT, _LAST_STEP, _RECENT_HITS = map(
    _ROW.index, ("at", "prefix_hits", "heartbeat", "advanced_at", "last_step", "recent_hits")
)
_PASSING: Final = slice(_AT, _HITS + 1)
_COPIED: Final = slice(_AT, _ADVANCED_AT)
_ENDED: Final = slice(_ROW.index("slo_total"), _ROW.index("tpot_good") + 1)
_MEASURED: Final = [COLUMNS[name] for name in _ROW[_COPIED]]


class Tracks(Value):
    """Those of all replicas, in columns."""

    ids: tuple[str, ...] = ()
    processes: tuple[_Process, ...] = ()
    """When each was made, and how often it was started again."""
    counted: Packed = b""
    """[N, 12] in eight bytes each: the other fields of each `Track`."""

    def get(self, key: str) -> Track | None:
        place = _places(self).get(key)
        return None if place is None else Track(*self.processes[place], *self._rows[place].tolist())

    def __contains__(self, key: str) -> bool:
        return key in _places(self)

    def alive(self, now: float, max_age_s: float) -> set[str]:
        """Whose heartbeat was seen to move lately."""
        moved: list[bool] = (now - self._rows[:, _ADVANCED_AT] <= max_age_s).tolist()
        return set(compress(self.ids, moved))

    def heard(self, replicas: Iterable[Replica], now: float, max_age_s: float) -> list[Replica]:
        """Those of the replicas that have told something lately."""
        told: list[float] = self._rows[:, _AT].tolist()
        lately = {(key, *p) for key, p, at in zip(self.ids, self.processes, told, strict=True) if now - at <= max_age_s}
        return [replica for replica in replicas if (replica.id, replica.created_at, replica.restarts) in lately]

    @property
    def cached(self) -> dict[str, float]:
        """Prompt tokens that the prefix caches have lately saved, where they have saved any."""
        hits: list[float] = self._rows[:, _RECENT_HITS].tolist()
        return {key: saved for key, saved in zip(self.ids, hits, strict=True) if saved >= 1}

    def after(self, replicas: Sequence[Replica], engines: Engines) -> "Followed":
        """The tracks after one more look at these `replicas`, of which the `engines` told."""
        before, known = self._of(engines.ids, processes := _processes(engines.replicas))
        now = np.empty((len(engines), len(_ROW)))
        now[:, _COPIED] = engines.numbers.take(_MEASURED, axis=1)
        passed = now[:, _PASSING] - before[:, _PASSING]
        now[:, _ADVANCED_AT] = now[:, _AT]
        stands_still = known & (now[:, _HEARTBEAT] == before[:, _HEARTBEAT])
        if not everywhere(~stands_still):
            now[stands_still, _ADVANCED_AT] = before[stands_still, _ADVANCED_AT]
        now[:, _LAST_STEP] = np.maximum(before[:, _LAST_STEP], engines.last_steps[:, 0])
        kept = 0.5 ** (np.maximum(0.0, passed[:, _AT]) / _HITS_HALF_LIFE_S)
        now[:, _RECENT_HITS] = before[:, _RECENT_HITS] * kept + np.maximum(0.0, passed[:, _HITS])
        goes_on = known[:, None] & (passed >= 0)
        if not everywhere(goes_on):
            now[~goes_on[:, _AT], _RECENT_HITS] = 0.0
            # Where one of them ran backwards, all of them say nothing.
            passed[~np.logical_and.reduce(goes_on, axis=1)] = 0.0
        sums = np.add.reduce(passed, axis=0).tolist()
        tracks = Tracks.made(ids=engines.ids, processes=processes, counted=now.tobytes())
        if len(engines) < len(replicas):
            tracks = tracks._with(self, [r for r in replicas if r.id not in tracks])
        return Followed(tracks, Passed(*sums), before[:, _LAST_STEP])

    def gained(self, earlier: "Tracks", replicas: Sequence[Replica]) -> Array:
        """[N, 4] Requests that ended on each of the replicas since, and how many of them were good: all told, by TTFT,
        by TPOT. Zeros for those that are other processes by now, or have counted what cannot be.
        """
        ids, processes = tuple([replica.id for replica in replicas]), _processes(replicas)
        (now, is_there), (then, was_there) = self._of(ids, processes), earlier._of(ids, processes)
        gained = now[:, _ENDED] - then[:, _ENDED]
        requests, good = gained[:, :1], gained[:, 1:]
        is_sane = np.logical_and.reduce((good >= 0) & (good <= requests), axis=1)
        return np.where((is_there & was_there & is_sane)[:, None], gained, 0.0)

    @property
    def _rows(self) -> Array:
        return np.frombuffer(self.counted, dtype="<f8").reshape(-1, len(_ROW))

    def _of(self, ids: tuple[str, ...], processes: tuple[_Process, ...]) -> tuple[Array, NDArray[np.bool_]]:
        """[N, 12] The rows of these processes, zeros for those without a track; and [N] which have one."""
        if self.ids == ids and self.processes == processes:
            return self._rows, ~np.zeros(len(ids), dtype=bool)
        places = [_places(self).get(key, -1) for key in ids]
        known = [i >= 0 and self.processes[i] == process for i, process in zip(places, processes, strict=True)]
        found = np.zeros((len(ids), len(_ROW)))
        found[known] = self._rows[list(compress(places, known))]
        return found, np.array(known, dtype=bool)

    def _with(self, before: "Tracks", silent: Sequence[Replica]) -> "Tracks":
        """With the tracks that these, which told nothing now, had `before`."""
        processes, ids = _processes(silent), tuple([replica.id for replica in silent])
        rows, known = before._of(ids, processes)
        return Tracks.made(
            ids=(*self.ids, *compress(ids, known.tolist())),
            processes=(*self.processes, *compress(processes, known.tolist())),
            counted=self.counted + rows[known].tobytes(),
        )


class Followed(NamedTuple):
    """What a look made of the tracks before it."""

    tracks: Tracks
    passed: Passed
    seen_steps: Array
    """[N] Of each engine that told, the number of its newest step that had been seen before; 0 without one."""


def _processes(replicas: Iterable[Replica]) -> tuple[_Process, ...]:
    return tuple(map(_PROCESS, replicas))


@lifelong
def _places(tracks: Tracks) -> Mapping[str, int]:
    return {key: place for place, key in enumerate(tracks.ids)}
