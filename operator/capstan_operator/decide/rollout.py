"""From a wanted number and a revision to replicas started, drained and stopped.

Stateless: it compares what is there with what should be, so it may be interrupted and repeated anywhere. Knows nothing
of load beyond the number of requests on each replica and what its prefix cache is worth.

A change of revision replaces old replicas by new ones without having fewer than `wanted − maxUnavailable` ready or more
than `wanted + maxSurge` in all; draining ones have left and count in neither.
"""

from collections.abc import Iterable, Mapping
from itertools import count as numbers
from itertools import islice
from typing import Final

from capstan_operator.decide.seen.observation import Phase, Replica
from capstan_operator.decide.values import Value

# The farther a replica has come, the later it is given up.
_PHASES = (Phase.PENDING, Phase.FAILED, Phase.STARTING, Phase.READY, Phase.DRAINING)


class Plan(Value):
    """Ids of replicas to start, to drain, and to stop at once because they serve nobody."""

    start: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


_NOTHING: Final = Plan()


def plan(
    replicas: Iterable[Replica],
    *,
    name: str,
    revision: str,
    wanted: int,
    max_surge: int,
    max_unavailable: int,
    load: Mapping[str, float],
    cache_value: Mapping[str, float],
) -> Plan:
    """The next moves; empty when `wanted` replicas of `revision` are all there is.

    `load` is the number of requests on each replica, `cache_value` the prompt tokens that its prefix cache saves.
    """
    replicas, serving = tuple(replicas), Phase.READY
    settled = [r for r in replicas if r.phase is serving and r.revision == revision]
    if len(settled) == len(replicas) == wanted:
        return _NOTHING

    def reluctance(replica: Replica) -> tuple[int, float, float, float, str]:
        """Sorts the best victim first: one that serves nobody, then least work, least cached, then youngest."""
        work, cached = load.get(replica.id, 0.0), cache_value.get(replica.id, 0.0)
        return (_PHASES.index(replica.phase), work, cached, -replica.created_at, replica.id)

    live = [r for r in replicas if r.phase is not Phase.DRAINING]
    new = [r for r in live if r.revision == revision]
    old = [r for r in live if r.revision != revision]
    ready = [r for r in live if r.phase is Phase.READY]

    room = wanted - len(new) if not old else min(wanted - len(new), wanted + max_surge - len(live))
    start = _free_ids(name, revision, {r.id for r in replicas}, room) if room > 0 else ()

    # Old replicas that serve nobody protect nothing; those that serve go as fast as availability allows.
    spare = len(ready) - (wanted - max_unavailable if old else wanted)
    leaving = [r for r in old if r.phase is not Phase.READY]
    serving_old = sorted((r for r in old if r.phase is Phase.READY), key=reluctance)
    leaving += serving_old[: max(0, min(spare, len(serving_old)))]
    surplus = len(new) - wanted
    if surplus > 0:
        leaving += sorted(new, key=reluctance)[:surplus]
    return Plan.made(
        start=start,
        drain=tuple(r.id for r in leaving if r.phase is Phase.READY),
        stop=tuple(r.id for r in leaving if r.phase is not Phase.READY),
    )


def _free_ids(name: str, revision: str, taken: set[str], count: int) -> tuple[str, ...]:
    ids = (f"{name}-{revision}-{n}" for n in numbers())
    return tuple(islice((i for i in ids if i not in taken), count))
