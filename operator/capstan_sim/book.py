"""What has happened to every request, and when: the one record that replicas write and that everybody else reads.

Knows no policy. Moments are appended in order of time, so that any sliding window is a slice between two bisections
and any mean over it a difference of two running sums.
"""

import math
from bisect import bisect_right
from itertools import accumulate

from capstan_sim.workload import Workload

UNSET = -1.0


class Book:
    """Plain lists, because the simulation reads and writes single numbers by the million."""

    def __init__(
        self,
        workload: Workload,
        priorities: tuple[int, ...] = (0,),
        outside_s: float = 0.0,
        ttft_s: tuple[float, ...] = (),
    ) -> None:
        """`priorities` and `ttft_s` are those of the SLO classes; no `ttft_s` at all is no threshold for any."""
        self.outside_s = outside_s
        """From the moment at which a replica has a token to that at which the client has it."""
        self.arrival: list[float] = workload.arrival.tolist()
        self.prompt: list[int] = workload.prompt.tolist()
        self.output: list[int] = workload.output.tolist()
        # The last prompt token is always computed: its logits give the first output token.
        self.cached: list[int] = [min(c, p - 1) for c, p in zip(workload.cached.tolist(), self.prompt, strict=True)]
        self.slo_class: list[int] = workload.slo_class.tolist()
        self.priority: list[int] = [priorities[index] for index in self.slo_class]
        num = len(self.arrival)
        self.first_token_due: list[float] = [math.inf] * num
        """When an engine holds its first token for late."""
        if ttft_s:
            late_after = zip(self.arrival, self.slo_class, strict=True)
            self.first_token_due = [arrival + ttft_s[index] for arrival, index in late_after]
        self.started: list[float] = [UNSET] * num
        """When a step of the replica that has it first computed a part of it."""
        self.first: list[float] = [UNSET] * num
        """When its first token came to the client, which is known before it comes."""
        self.done: list[float] = [UNSET] * num
        self.produced: list[int] = [0] * num
        """Output tokens known when it was last preempted."""
        self.num_retries: list[int] = [0] * num
        self.pod: list[int] = [0] * num
        """Number of the pod that it was sent to last, 0 while it waits at the gateway."""
        self.prompt_sums: list[int] = [0, *accumulate(self.prompt)]
        self.arrival_sums: list[float] = [0.0, *accumulate(self.arrival)]
        self.num_arrived = 0
        self.first_times: list[float] = []
        self.first_requests: list[int] = []
        self.first_ttfts: list[float] = []
        self.done_times: list[float] = []
        self.done_requests: list[int] = []
        self.done_tpots: list[float] = []
        self.done_time_sums: list[float] = [0.0]

    def __len__(self) -> int:
        return len(self.arrival)

    def first_token(self, request: int, now: float) -> None:
        self.first[request] = came = now + self.outside_s
        self.first_times.append(now)
        self.first_requests.append(request)
        self.first_ttfts.append(came - self.arrival[request])

    def finished(self, request: int, now: float) -> None:
        """Its last token came. A request of one token has a TPOT of 0."""
        output = self.output[request]
        self.done[request] = came = now + self.outside_s
        self.done_times.append(now)
        self.done_requests.append(request)
        self.done_tpots.append((came - self.first[request]) / (output - 1) if output > 1 else 0.0)
        self.done_time_sums.append(self.done_time_sums[-1] + now)

    def lost(self, request: int) -> None:
        """Its replica died: everything that was computed has to be computed again."""
        self.started[request] = self.first[request] = UNSET
        self.produced[request] = 0
        self.num_retries[request] += 1

    def request_seconds(self, until: float) -> float:
        """Integral of the number of requests in the system from 0 to `until`, which must not lie in the future."""
        arrived = bisect_right(self.arrival, until, hi=self.num_arrived)
        done = bisect_right(self.done_times, until)
        return until * (arrived - done) - self.arrival_sums[arrived] + self.done_time_sums[done]
