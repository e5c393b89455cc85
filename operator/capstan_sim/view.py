"""From the fleet's books to what a policy may see: windows of rates, latencies and load, made fresh at every tick."""

from bisect import bisect_right
from collections.abc import Sequence

from capstan_sim.book import Book
from capstan_sim.fleet import Fleet, PodPhase
from capstan_sim.policy import Observation, ReplicaLoad

_WINDOW_S, _SHORT_WINDOW_S, _CONCURRENCY_WINDOW_S = 60.0, 10.0, 6.0


def observe(fleet: Fleet, target: int) -> Observation:
    """The fleet now, which is after its beginning. `target` replicas are wanted."""
    book, now = fleet.book, fleet.now
    span_s, short_s = min(_WINDOW_S, now), min(_SHORT_WINDOW_S, now)
    ready = fleet.phase(PodPhase.READY)
    num_arrived = book.num_arrived
    arrived_10s = bisect_right(book.arrival, now - short_s)
    first_done = bisect_right(book.done_times, now - span_s)
    ended = book.done_requests[first_done:]
    return Observation(
        now=now,
        ready=len(ready),
        starting=len(fleet.phase(PodPhase.PENDING, PodPhase.STARTING)),
        draining=len(fleet.phase(PodPhase.DRAINING)),
        target=target,
        ttft_s=book.first_ttfts[bisect_right(book.first_times, now - span_s) :],
        tpot_s=book.done_tpots[first_done:],
        gateway_queue=len(fleet.gateway),
        replicas=[
            ReplicaLoad(r.num_running, r.num_waiting, r.waiting_tokens, r.kv_tokens(now))
            for pod in ready
            if (r := pod.replica) is not None
        ],
        concurrency_6s=_concurrency(book, now, min(_CONCURRENCY_WINDOW_S, now)),
        concurrency_60s=_concurrency(book, now, span_s),
        arrival_rate=(num_arrived - bisect_right(book.arrival, now - span_s)) / span_s,
        prompt_token_rate_10s=(book.prompt_sums[num_arrived] - book.prompt_sums[arrived_10s]) / short_s,
        arrivals=num_arrived,
        mean_prompt=_mean(book.prompt, ended),
        mean_output=_mean(book.output, ended),
        limits=fleet.limits,
    )


def _mean(lengths: Sequence[int], requests: Sequence[int]) -> float:
    return sum(lengths[request] for request in requests) / len(requests) if requests else 0.0


def _concurrency(book: Book, now: float, span_s: float) -> float:
    return (book.request_seconds(now) - book.request_seconds(now - span_s)) / span_s
