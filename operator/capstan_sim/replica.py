"""One engine in simulated time: continuous batching exactly as the engine's scheduler does it, run by run.

    decodes first · what is left of the token budget to prompts in order of rank · at most `max_sequences` at a time
    a prompt is admitted when the KV cache holds all of it · the worst rank is preempted when a decode finds no room
    whose first token can no longer be in time, by the pace of prefill, yields at the next step boundary

Knows the seconds of a step only from its `StepModel`, and no fleet. The surprising idea: nothing happens between two
ends of requests but equal decode steps that grow by one context token for each sequence, so their time is an arithmetic
series. A *run* is one step with prompts in it, or a whole series of decode steps; an arrival cuts a series at the next
step boundary, and so does the moment at which the head of the queue yields. The result is that of stepping token by
token, in a fiftieth of the time.

Where it differs from the real scheduler (`exact` drives that one): KV is counted in tokens and not in blocks, prefix
hits come from the workload and are never evicted, and a request longer than the KV cache never gets here.
"""

import math
from bisect import bisect_left, insort
from collections import deque
from heapq import heapify, heappop, heappush
from operator import itemgetter

from capstan_api.limits import BatchLimits
from capstan_engine.scheduler.prefill_pace import PrefillPace
from capstan_engine.scheduler.request import LATE_HANDICAP_S, PRIORITY_LEVEL_S
from capstan_sim.book import Book
from capstan_sim.engine import REMEMBERED_RUNS, Run
from capstan_sim.step_time import StepModel

Entry = tuple[float, int, int]
"""Rank, number of the submission here, request: the order of service, smaller first."""


class _Prompt:
    """An admitted request with tokens left to compute; its KV is held in whole."""

    __slots__ = ("computed", "entry", "known")

    def __init__(self, entry: Entry, computed: int, known: int) -> None:
        self.entry, self.computed, self.known = entry, computed, known


class Replica:
    """The fast `Engine`."""

    __slots__ = (
        "_busy_s", "_chunks", "_clock", "_context", "_finish", "_held", "_in_turn", "_judged_at", "_judgements",
        "_num_filling", "_num_generated", "_num_steps", "_num_submitted", "_pace", "_prompts", "_run", "_running",
        "_waiting", "book", "limits", "model", "num_preemptions", "outstanding", "prefix_hits", "prefix_queries",
        "runs", "until", "waiting_tokens",
    )  # fmt: skip

    def __init__(self, model: StepModel, limits: BatchLimits, book: Book) -> None:
        self.model, self.limits, self.book = model, limits, book
        self.until = math.inf
        self.outstanding = 0
        self.waiting_tokens = 0
        self.num_preemptions = self.prefix_queries = self.prefix_hits = 0
        self.runs: deque[Run] = deque(maxlen=REMEMBERED_RUNS)
        self._run: Run | None = None
        self._clock = 0
        """Decode steps so far: a sequence with r tokens to go ends when the clock has advanced by r."""
        self._finish: list[tuple[int, int]] = []
        """Heap of (clock at the last token, request), one entry for each decoding sequence."""
        self._context = 0
        """Known tokens of all decoding sequences."""
        self._prompts: list[_Prompt] = []
        self._held = 0
        """Tokens of KV that belong to `_prompts`."""
        self._running: dict[int, Entry] = {}
        self._waiting: list[Entry] = []
        """In order of rank."""
        self._judgements: list[tuple[float, Entry, Entry]] = []
        """Heap of (when it is asked whether its first token can be in time, its entry until then, its entry once it has
        yielded). What no longer matters is left in it."""
        self._judged_at: dict[int, float] = {}
        """Those moments, by request."""
        self._pace = PrefillPace()
        self._num_filling = 0
        """Tokens of prompts in this step, where they have used up the budget."""
        self._chunks: list[tuple[_Prompt, int]] = []
        self._in_turn: set[int] | None = None
        """The decodes that get a token in this step, when not all fit the budget."""
        self._num_submitted = self._num_steps = self._num_generated = 0
        self._busy_s = 0.0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def prefill_backlog(self) -> int:
        lengths = self.book.prompt
        return self.waiting_tokens + sum(max(0, lengths[p.entry[2]] - p.computed) for p in self._prompts)

    def submit(self, request: int, now: float) -> None:
        book = self.book
        # What it has waited at the gateway, or at a replica that is no more, the engine is told.
        entry = (book.arrival[request] - book.priority[request] * PRIORITY_LEVEL_S, self._num_submitted, request)
        self._num_submitted += 1
        insort(self._waiting, entry)
        due = book.first_token_due[request]
        if due < math.inf:
            self._judge_at(
                self._late_at(request, book.prompt[request]), entry, (entry[0] + LATE_HANDICAP_S, *entry[1:])
            )
        self.outstanding += 1
        self.waiting_tokens += book.prompt[request]
        if self._run is None:
            self._plan(now)
        elif self._waiting[0] is entry and len(self._running) < self.limits.max_sequences:
            self._cut(now)

    def set_limits(self, limits: BatchLimits, now: float) -> None:
        if limits != self.limits:
            self.limits = limits
            self._cut(now)

    def advance(self) -> None:
        run = self._run
        assert run is not None, "an idle replica has nothing to advance"
        now, steps, book, finish = self.until, run.num_steps, self.book, self._finish
        self.runs.append(run)
        self._num_steps += steps
        self._busy_s += now - run.start
        if self._num_filling:
            self._pace.learn(self._num_filling, now - run.start)
        num_decoding = len(finish)
        if self._in_turn is not None:
            self._wait_a_turn(self._in_turn)
            num_decoding = len(self._in_turn)
        self._clock = clock = self._clock + steps
        self._context += steps * num_decoding
        self._num_generated += steps * num_decoding
        while finish and finish[0][0] <= clock:
            _, request = heappop(finish)
            self._context -= book.prompt[request] + book.output[request]
            self._end(request, now)
        for prompt, tokens in self._chunks:
            prompt.computed += tokens
            if prompt.computed == prompt.known:
                self._prompts.remove(prompt)
                self._held -= prompt.known
                self._sampled_first(prompt, now)
        self._plan(now)

    def abandon(self) -> list[int]:
        # As they came: each begins with a new rank elsewhere.
        left = sorted([*self._waiting, *self._running.values()], key=itemgetter(1))
        self._waiting, self._running, self._finish, self._prompts, self._chunks = [], {}, [], [], []
        self._judgements, self._judged_at, self._num_filling = [], {}, 0
        self._run, self.until, self.outstanding = None, math.inf, 0
        return [request for _, _, request in left]

    def kv_tokens(self, now: float) -> int:
        return self._held + self._context + self._steps_by(now) * len(self._finish)

    def num_steps(self, now: float) -> int:
        return self._num_steps + self._steps_by(now)

    def num_generated(self, now: float) -> int:
        return self._num_generated + self._steps_by(now) * len(self._finish)

    def busy_s(self, now: float) -> float:
        return self._busy_s + (now - self._run.start if self._run is not None else 0.0)

    def run_so_far(self, now: float) -> Run | None:
        steps = self._steps_by(now)
        return self._run._replace(num_steps=steps) if self._run is not None and steps else None

    def _steps_by(self, now: float) -> int:
        run = self._run
        if run is None or now <= run.start:
            return 0
        steps = run.steps_until(now)
        return steps if run.end(steps) <= now else steps - 1

    def _sampled_first(self, prompt: _Prompt, now: float) -> None:
        """A prompt is computed: its request has one more token, and decodes from now on if it wants more."""
        book, request = self.book, prompt.entry[2]
        produced = book.produced[request] + 1
        self._num_generated += 1
        if produced == 1:
            book.first_token(request, now)
            self._judged_at.pop(request, None)
            priority_s = book.priority[request] * PRIORITY_LEVEL_S
            self._running[request] = (book.arrival[request] - priority_s, prompt.entry[1], request)
        if produced == book.output[request]:
            self._end(request, now)
            return
        self._context += prompt.known + 1
        heappush(self._finish, (self._clock + book.output[request] - produced, request))

    def _end(self, request: int, now: float) -> None:
        del self._running[request]
        self.outstanding -= 1
        self.book.finished(request, now)

    def _cut(self, now: float) -> None:
        """End the present series of decode steps at the next boundary."""
        run = self._run
        if run is not None and run.num_steps > 1:
            steps = min(run.num_steps, run.steps_until(now))
            self._run = run._replace(num_steps=steps)
            self.until = self._run.end(steps)

    def _cut_where_the_head_yields(self, now: float) -> None:
        """At the first boundary at which another one may be admitted in place of a head that finds no room."""
        if not self._waiting or len(self._running) >= self.limits.max_sequences:
            return
        head = self._waiting[0][2]
        judged_at = self._judged_at.get(head)
        if judged_at is not None:
            # Decodes leave the pace of prefill as it is.
            yields_at = max(judged_at, self._late_at(head, self.book.prompt[head] - self.book.cached[head]))
            if now < yields_at < self.until:
                self._cut(yields_at)

    def _judge_at(self, moment: float, entry: Entry, late: Entry) -> None:
        self._judged_at[entry[2]] = moment
        heappush(self._judgements, (moment, entry, late))

    def _late_at(self, request: int, num_left: int) -> float:
        """The last moment at which what is left of its prompt can be begun, to end before its first token is due."""
        return self.book.first_token_due[request] - self._pace.seconds_for(num_left)

    def _let_late_yield(self, now: float) -> None:
        judgements, book = self._judgements, self.book
        while judgements and judgements[0][0] <= now:
            _, entry, late = heappop(judgements)
            request = entry[2]
            if book.first[request] >= 0:
                continue
            prompt, num_left = None, book.prompt[request] - book.cached[request]
            if request in self._running:
                prompt = next(prompt for prompt in self._prompts if prompt.entry is entry)
                num_left = prompt.known - prompt.computed
            late_at = self._late_at(request, num_left)
            if late_at > now:
                self._judge_at(late_at, entry, late)
                continue
            del self._judged_at[request]
            if prompt is not None:
                self._running[request] = prompt.entry = late
            else:
                del self._waiting[bisect_left(self._waiting, entry)]
                insort(self._waiting, late)

    def _plan(self, now: float) -> None:
        """Begin the next run, or fall idle."""
        model, budget = self.model, self.limits.max_batched_tokens
        self._chunks, self._num_filling = [], 0
        if self._judgements and self._judgements[0][0] <= now:
            self._let_late_yield(now)
        last_tokens = [p for p in self._prompts if p.known - p.computed == 1] if self._prompts else []
        if len(self._finish) + len(last_tokens) > budget:
            self._in_turn = self._serve_in_turns(budget, now)
        else:
            self._in_turn = None
            while self._context + self._held > model.kv_tokens:
                self._preempt(max(self._running.values()))
            self._chunks = [(prompt, 1) for prompt in last_tokens if prompt.entry[2] in self._running]
            budget -= len(self._finish) + len(self._chunks)
            if budget and (self._waiting or self._prompts):
                self._fill(budget, now)
        if self._in_turn is not None and not self._in_turn and not self._chunks:
            # All whose turn it was have been preempted, and nobody fits in their place: it is the others' turn.
            self._plan(now)
        elif self._chunks or self._in_turn is not None:
            self._begin_mixed(now)
        elif self._finish:
            sequences = len(self._finish)
            room = (model.kv_tokens - self._held - self._context) // sequences + 1
            steps = min(self._finish[0][0] - self._clock, room)
            first_s = model.seconds(0, sequences, self._context, 0)
            growth_s = model.context_token_s * sequences
            self._begin(Run(self._num_steps + 1, now, steps, 0, sequences, self._context, 0, first_s, growth_s))
            self._cut_where_the_head_yields(now)
        else:
            self._run, self.until = None, math.inf

    def _begin_mixed(self, now: float) -> None:
        """A single step of the decodes that are served and of the chunks."""
        book, sequences, context = self.book, len(self._finish), self._context
        if self._in_turn is not None:
            sequences = len(self._in_turn)
            context = sum(self._known(request, last) for last, request in self._finish if request in self._in_turn)
        prefill_tokens = pairs = 0
        for prompt, tokens in self._chunks:
            start = prompt.computed
            if tokens == 1 and start >= book.prompt[prompt.entry[2]]:
                # The end of a recomputation is a decode like any other.
                sequences += 1
                context += prompt.known
            else:
                prefill_tokens += tokens
                pairs += tokens * (2 * start + tokens) // 2
        first_s = self.model.seconds(prefill_tokens, sequences, context, pairs)
        self._begin(Run(self._num_steps + 1, now, 1, prefill_tokens, sequences, context, pairs, first_s, 0.0))

    def _begin(self, run: Run) -> None:
        self._run = run
        self.until = run.end(run.num_steps)

    def _known(self, request: int, last: int) -> int:
        """Tokens of a decoding sequence that ends at the clock `last`."""
        return self.book.prompt[request] + self.book.output[request] - (last - self._clock)

    def _fill(self, budget: int, now: float) -> None:
        """Give `budget` to prompts that lack more than one token, in order of rank, running or waiting."""
        running = [prompt for prompt in self._prompts if prompt.known - prompt.computed > 1]
        running.sort(key=lambda prompt: prompt.entry, reverse=True)
        waiting, book, may_admit, room = self._waiting, self.book, True, budget
        while budget:
            if may_admit and (not running or (waiting and waiting[0] < running[-1].entry)):
                # Room does not grow within a step: a head that does not fit is asked only once.
                admitted = self._admit()
                if admitted is None:
                    may_admit = False
                    continue
                prompt = admitted
                request = prompt.entry[2]
                if book.started[request] < 0:
                    book.started[request] = now
                    self.prefix_queries += book.prompt[request]
                    self.prefix_hits += book.cached[request]
            elif running:
                prompt = running.pop()
            else:
                return
            tokens = min(budget, prompt.known - prompt.computed)
            budget -= tokens
            self._chunks.append((prompt, tokens))
        self._num_filling = room

    def _admit(self) -> _Prompt | None:
        """Let the head of the queue run, if there is room for all that it knows."""
        if not self._waiting or len(self._running) >= self.limits.max_sequences:
            return None
        entry, book, capacity = self._waiting[0], self.book, self.model.kv_tokens
        request = entry[2]
        known = book.prompt[request] + book.produced[request]
        # What an admission leaves free, so that the next decode does not have to preempt what was just admitted.
        watermark = -(-capacity // 100) if self._running else 0
        if known + watermark > capacity - self._held - self._context:
            return None
        del self._waiting[0]
        self.waiting_tokens -= book.prompt[request]
        self._running[request] = entry
        prompt = _Prompt(entry, book.cached[request], known)
        self._prompts.append(prompt)
        self._held += known
        return prompt

    def _preempt(self, entry: Entry) -> None:
        """Back to the queue: known tokens stay, computed ones are computed again."""
        request, book = entry[2], self.book
        del self._running[request]
        self.num_preemptions += 1
        for prompt in self._prompts:
            if prompt.entry is entry:
                self._prompts.remove(prompt)
                self._held -= prompt.known
                break
        else:
            at = next(index for index, (_, other) in enumerate(self._finish) if other == request)
            last, _ = self._finish[at]
            self._finish[at] = self._finish[-1]
            self._finish.pop()
            heapify(self._finish)
            known = self._known(request, last)
            book.produced[request] = known - book.prompt[request]
            self._context -= known
        self.waiting_tokens += book.prompt[request]
        insort(self._waiting, entry)

    def _serve_in_turns(self, budget: int, now: float) -> set[int]:
        """A budget below the number of sequences that lack one token: they take turns, one step at a time.

        Returns the decodes whose turn it is.
        """
        decoding = {request for _, request in self._finish}
        last_tokens = {p.entry[2]: p for p in self._prompts if p.known - p.computed == 1}
        served = [request for request in self._running if request in decoding or request in last_tokens][:budget]
        turn = dict.fromkeys(served)
        others = {request: entry for request, entry in self._running.items() if request not in turn}
        self._running = others | {request: self._running[request] for request in served}
        while True:
            in_turn = {request for request in served if request in decoding and request in self._running}
            # A sequence that is not served needs no room for one more token.
            num_passed_over = len(self._finish) - len(in_turn)
            if self._context - num_passed_over + self._held <= self.model.kv_tokens:
                break
            self._preempt(max(self._running.values()))
        self._chunks = [(last_tokens[r], 1) for r in served if r in last_tokens and r in self._running]
        budget -= len(in_turn) + len(self._chunks)
        if budget:
            self._fill(budget, now)
        return in_turn

    def _wait_a_turn(self, served: set[int]) -> None:
        """Decodes that got no token end one step later."""
        self._finish[:] = [(last + (request not in served), request) for last, request in self._finish]
        heapify(self._finish)
