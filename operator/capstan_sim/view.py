"""From the fleet's books to what a policy may see: windows of rates, latencies and load, made fresh at every tick."""

from bisect import bisect_right
from itertools import islice

from capstan_sim.fleet import Fleet, PodPhase
from capstan_sim.policy import Observation, ReplicaLoad, StepSample

_NUM_STEP_SAMPLES = 256
_WINDOW_S, _SHORT_WINDOW_S, _CONCURRENCY_WINDOW_S = 60.0, 10.0, 6.0


class View:
    """Looks at one fleet. Remembers the counts of earlier looks, because tokens are only counted and not dated."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._looked_at: list[float] = [0.0]
        self._output_tokens: list[int] = [0]

    def observe(self, target: int) -> Observation:
        """The fleet now. Takes the step samples since the look before from the replicas."""
        fleet, book = self._fleet, self._fleet.book
        now = fleet.now
        span_s = min(_WINDOW_S, now)
        start = now - span_s
        ready = fleet.phase(PodPhase.READY)
        first = bisect_right(book.first_times, start)
        done, num_done = bisect_right(book.done_times, start), len(book.done_times)
        arrived, num_arrived = bisect_right(book.arrival, start), book.num_arrived
        arrived_10s = bisect_right(book.arrival, now - min(_SHORT_WINDOW_S, now))
        prompt_tokens = book.prompt_sums[num_arrived]
        recent_prompt_tokens = prompt_tokens - book.prompt_sums[arrived]
        output_tokens = self._count_output_tokens()
        return Observation(
            now=now,
            ready=len(ready),
            starting=len(fleet.phase(PodPhase.PENDING, PodPhase.STARTING)),
            draining=len(fleet.phase(PodPhase.DRAINING)),
            target=target,
            ttft_s=book.first_ttfts[first:],
            tpot_s=book.done_tpots[done:],
            gateway_queue=len(fleet.gateway),
            replicas=[
                ReplicaLoad(r.num_running, r.num_waiting, r.waiting_tokens, r.kv_tokens(now))
                for pod in ready
                if (r := pod.replica) is not None
            ],
            concurrency_6s=self._concurrency(min(_CONCURRENCY_WINDOW_S, now)),
            concurrency_60s=self._concurrency(span_s),
            arrival_rate=(num_arrived - arrived) / span_s,
            finish_rate=(num_done - done) / span_s,
            prompt_token_rate=recent_prompt_tokens / span_s,
            prompt_token_rate_10s=(prompt_tokens - book.prompt_sums[arrived_10s]) / min(_SHORT_WINDOW_S, now),
            output_token_rate=self._output_rate(span_s),
            output_token_rate_10s=self._output_rate(min(_SHORT_WINDOW_S, now)),
            mean_prompt=recent_prompt_tokens / max(1, num_arrived - arrived),
            mean_output=(book.done_output_sums[num_done] - book.done_output_sums[done]) / max(1, num_done - done),
            arrivals=num_arrived,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            steps=self._steps(),
            limits=fleet.limits,
        )

    def _concurrency(self, span_s: float) -> float:
        book, now = self._fleet.book, self._fleet.now
        return (book.request_seconds(now) - book.request_seconds(now - span_s)) / span_s

    def _count_output_tokens(self) -> int:
        """Tokens made since the beginning."""
        fleet = self._fleet
        living = sum(pod.replica.num_generated(fleet.now) for pod in fleet.pods if pod.replica is not None)
        self._looked_at.append(fleet.now)
        self._output_tokens.append(living + fleet.num_generated_by_gone)
        return self._output_tokens[-1]

    def _output_rate(self, span_s: float) -> float:
        """Tokens/s since the last look that lies at least `span_s` back."""
        then = max(0, bisect_right(self._looked_at, self._looked_at[-1] - span_s) - 1)
        made = self._output_tokens[-1] - self._output_tokens[then]
        return made / (self._looked_at[-1] - self._looked_at[then])

    def _steps(self) -> list[StepSample]:
        """The newest steps since the last look, equally many of each replica; of a series of decode steps the first."""
        replicas = [pod.replica for pod in self._fleet.pods if pod.replica is not None]
        each = _NUM_STEP_SAMPLES // max(1, len(replicas))
        samples: list[StepSample] = []
        for replica in replicas:
            newest = islice(reversed(replica.runs), each)
            samples += [StepSample(run.prefill_tokens, run.sequences, run.context, run.first_s) for run in newest]
            replica.runs.clear()
        return samples
