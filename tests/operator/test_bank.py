"""The virtual fleets: what each would have missed, held against queues simulated request by request."""

import json
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_operator.decide.curve import Array, curve, sizes, values
from capstan_operator.decide.fleets.bank import NUM_SLOTS, Bank
from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.fleets.queues import Arrived, Class, Engine

# A 70B model on four cards: step, prefill token, sequence and context token, in seconds.
COSTS = (2.2e-2, 6.8e-5, 4.0e-5, 3.0e-8, 0.0)
FLEETS = sizes(24)
CHAT = Class("chat", 0, ttft_s=1.0, tpot_s=0.1)
BACKGROUND = Class("background", -1, ttft_s=20.0, tpot_s=inf)


def engine(**fields: Any) -> Engine:
    defaults: dict[str, Any] = {
        "model": EngineModel(coefficients=COSTS),
        "token_s": COSTS[1],
        "budget": 1024,
        "full_s": inf,
        "kv_tokens": 410_000,
        "max_sequences": 512,
        "prompt": 1000,
        "long_prompt": 1500,
        "output": 200,
        "context": 1100,
    }
    return Engine(**{**defaults, **fields})


def nearest(fleets: Array, replicas: float) -> int:
    """Index of the fleet of a fixed size that is closest to so many replicas."""
    return 1 + int(np.argmin(np.abs(fleets[1:] - replicas)))


ALL_OF_THEM = 1e9


@dataclass
class Course:
    """A bank that is fed turn by turn."""

    of: Engine = field(default_factory=engine)
    classes: tuple[Class, ...] = (CHAT,)
    fleets: Array = field(default_factory=lambda: FLEETS)
    span_s: float = 1200.0
    late: float = ALL_OF_THEM
    """Requests of each class in a turn that ended late."""
    bank: Bank = field(default_factory=Bank)
    now: float = 0.0

    def turn(self, *arrived: tuple[float, float], seconds: float = 2.0, running: float = 0, ready: int = 0) -> "Course":
        self.now += seconds
        self.bank = self.bank.advanced(
            self.fleets,
            self.of,
            self.classes,
            [Arrived(*each) for each in arrived],
            late=[self.late] * len(arrived),
            seconds=seconds,
            now=self.now,
            span_s=self.span_s,
            running=running,
            num_ready=ready,
        )
        return self

    def steady(self, rate: float, seconds: float) -> "Course":
        """So many requests a second in every class."""
        for _ in range(round(seconds / 2)):
            self.turn(*[(2 * rate, 2 * rate * self.of.prompt)] * len(self.classes))
        return self

    def missed(self, replicas: float, k: int = 0) -> float:
        return float(self.bank.misses(len(self.fleets)).shares[k][nearest(self.fleets, replicas)])


def requests_lost(tokens_lost: float, of: Engine) -> float:
    """Share of requests, when so large a share of all prompt tokens cannot be computed in time.

    Those with the longest prompts give up first, so that the fewer are lost the longer they are.
    """
    typical = of.prompt / of.long_prompt
    return tokens_lost * (typical + (1 - typical) * tokens_lost)


def test_a_fleet_below_the_load_misses_nearly_all_and_one_far_above_nearly_nothing() -> None:
    # A request takes 68 ms of prefill and about 30 ms of decoding: ten a second keep one replica busy.
    course = Course().steady(30, 600)
    # Two compute a third less than comes, one two thirds.
    assert requests_lost(0.33, course.of) < course.missed(2) < 0.5
    assert requests_lost(0.66, course.of) < course.missed(1)
    assert course.missed(12) < 0.001


def test_bad_luck_that_nobody_had_is_told_less_and_what_is_too_much_for_a_fleet_as_before() -> None:
    # Thirty a second keep two replicas busy. Where prompts are this uneven three miss by chance, and one has too few.
    uneven = engine(long_prompt=4000)
    unlucky, lucky = Course(of=uneven), Course(of=uneven, late=0.0)
    for course in (unlucky, lucky):
        for _ in range(900):
            course.turn((60.0, 60_000.0), ready=4, running=4)
    assert 0 < lucky.missed(3) < 0.5 * unlucky.missed(3)
    assert lucky.missed(1) == pytest.approx(unlucky.missed(1), rel=0.01)
    assert lucky.bank.durable().chances == lucky.bank.chances


@settings(max_examples=30)
@given(st.lists(st.tuples(st.floats(0, 80), st.floats(100, 4000)), min_size=3, max_size=30))
def test_larger_fleets_never_miss_more(turns: list[tuple[float, float]]) -> None:
    course = Course()
    for requests, prompt in turns:
        course.turn((requests, requests * prompt))
    shares = course.bank.misses(len(FLEETS)).shares[0]
    assert (np.diff(shares[1:]) <= 1e-3).all()
    assert (shares >= 0).all()
    assert (shares <= 1 + 1e-6).all()


@settings(max_examples=20)
@given(st.floats(1, 60), st.floats(1, 3))
def test_more_arrivals_are_never_missed_less(rate: float, factor: float) -> None:
    one, more = Course().steady(rate, 60), Course().steady(rate * factor, 60)
    assert (more.bank.misses(len(FLEETS)).shares >= one.bank.misses(len(FLEETS)).shares - 1e-3).all()


def _late_share(rate: float, replicas: int, *, seconds: float = 4000.0) -> float:
    """Of requests at `replicas` single servers behind a router that knows who has least, simulated one by one.

    Prefill only, without steps: a prompt of 1000 tokens on average, exponentially distributed, computed at the rate of
    a full step. A server takes who can still be in time first.
    """
    random = Random(1)
    per_token_s = (COSTS[0] + COSTS[1] * 1024) / 1024
    queues = [list[tuple[float, float]]() for _ in range(replicas)]
    """What waits or is computed: arrival and service, in order of arrival."""
    free_at, served = [0.0] * replicas, [False] * replicas
    moment, late, count = 0.0, 0, 0

    def serve(server: int, until: float) -> int:
        """How many of those that it ends by then are late."""
        num_late, queue = 0, queues[server]
        while queue and free_at[server] <= until:
            if served[server]:
                queue.pop(0)
            served[server] = bool(queue)
            if queue:
                begins = max(free_at[server], queue[0][0])
                timely = (i for i, (came, takes_s) in enumerate(queue) if begins + takes_s <= came + CHAT.ttft_s)
                queue.insert(0, queue.pop(next(timely, 0)))
                came, service_s = queue[0]
                free_at[server] = begins + service_s
                num_late += free_at[server] - came > CHAT.ttft_s
        return num_late

    while moment < seconds:
        moment += random.expovariate(rate)
        late += sum(serve(i, moment) for i in range(replicas))
        server = min(range(replicas), key=lambda i: len(queues[i]))
        if not queues[server]:
            free_at[server] = moment
        queues[server].append((moment, random.expovariate(1.0) * 1000 * per_token_s))
        count += 1
    left = [moment - came for queue in queues for came, _ in queue]
    return (late + sum(waited > CHAT.ttft_s for waited in left)) / count


@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
@pytest.mark.parametrize(("load", "within"), [(0.7, 0.6), (0.8, 0.6), (0.85, 0.6), (0.9, 0.8)])
def test_the_share_between_never_and_always_is_that_of_real_queues(load: float, within: float, replicas: int) -> None:
    prefill_only = engine(output=1.0, long_prompt=2000.0)
    rate = replicas * load / (1000 * (COSTS[0] + COSTS[1] * 1024) / 1024)
    told = Course(of=prefill_only).steady(rate, 600).missed(replicas)
    real = _late_share(rate, replicas, seconds=12_000 / replicas)
    # Half a permille is nothing that an objective could tell from none.
    assert told == pytest.approx(real, rel=within, abs=5e-4)


def test_a_burst_is_missed_by_those_that_it_overruns_and_remembered_for_the_look_back() -> None:
    course = Course(span_s=120.0).steady(5, 60)
    assert course.missed(4) < 0.01
    course.steady(60, 20)
    after = course.missed(4)
    # Four compute 44 a second: of 1,500 requests 320 are too many, and 40 of those can wait for their turn.
    assert after > requests_lost(280 / 1500, course.of)
    assert course.missed(14) < 0.01
    course.steady(5, 60)
    assert 0.1 < course.missed(4) < after
    course.steady(5, 140)
    assert course.missed(4) < 0.01, "the burst has left the look-back"


def test_requests_that_come_in_flocks_are_missed_by_more_fleets_than_those_that_come_one_by_one() -> None:
    def missed(flock: float) -> float:
        draw, course = np.random.default_rng(1), Course()
        for _ in range(600):
            requests = flock * float(draw.poisson(2 * 30 / flock))
            course.turn((requests, requests * course.of.prompt))
        return course.missed(4)

    assert missed(12) > 4 * missed(1) > 0


def test_a_full_cache_is_a_cliff() -> None:
    roomy = Course(of=engine(output=1000.0, context=1500.0)).steady(4, 600)
    tight = Course(of=engine(output=1000.0, context=1500.0, kv_tokens=20_500)).steady(4, 600)
    assert roomy.missed(4) < 0.01
    # 12 sequences on each of the four, 23 s long: 2.1 a second of the 4.
    assert tight.missed(4) > 0.45


def test_the_limit_on_sequences_is_one_too() -> None:
    assert Course(of=engine(output=1000.0, max_sequences=8)).steady(4, 600).missed(4) > 0.5


def test_decoding_beyond_the_tpot_is_a_miss_too() -> None:
    slow = engine(model=EngineModel(coefficients=(*COSTS[:2], 4e-3, 0.0, 0.0)), output=500.0)
    assert Course(of=slow, classes=(BACKGROUND,)).steady(2, 600).missed(3) < 0.01
    assert Course(of=slow).steady(2, 600).missed(3) > 0.5


def test_an_urgent_class_does_not_wait_for_the_others() -> None:
    both = (CHAT, BACKGROUND)
    equal = (CHAT, Class("background", 0, 20.0, inf))
    ahead, along = Course(classes=both), Course(classes=equal)
    for _ in range(100):
        for course in (ahead, along):
            course.turn((4.0, 4000.0), (40.0, 40_000.0))
    assert ahead.missed(1.2, k=0) < 0.5 * along.missed(1.2, k=0)
    # 1.2 compute 13 of 22 a second.
    assert ahead.missed(1.2, k=1) > requests_lost(0.4, ahead.of)


def test_what_really_runs_corrects_output_lengths_that_are_not_known_yet() -> None:
    # Believed to be short answers; many more run than that would explain.
    course = Course(of=engine(output=40.0))
    for _ in range(200):
        course.turn((20.0, 20_000.0), running=60, ready=4)
    sequences = values(course.bank.queues.sequences, len(FLEETS))
    assert sequences[0] == pytest.approx(60, rel=0.3)
    assert sequences[nearest(FLEETS, 4)] == pytest.approx(60, rel=0.3)
    assert sequences[nearest(FLEETS, 2)] > 60, "slower steps keep requests longer"


def test_the_real_fleet_is_told_the_queue_of_its_own_cold_start() -> None:
    course = Course()
    for _ in range(30):
        course.turn((40.0, 40_000.0), ready=1, running=100)
    # One computes 11 of 20 a second.
    assert course.bank.told[0] > requests_lost(0.44, course.of)
    course.turn((40.0, 40_000.0), ready=6, running=100)
    backlog, in_time = (
        values(rows[0], len(FLEETS))[0] for rows in (course.bank.queues.backlog, course.bank.queues.in_time)
    )
    assert backlog > 10 * in_time, "six have the queue that one left them"
    assert course.bank.told[0] < 0.05, "and it is late, and yields to what comes now"
    assert course.missed(6) < 0.01, "six that had always been there have none"


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from([0.0, 1e-6, 1e-2]), min_size=5, max_size=5),
    st.sampled_from([0.0, 1.0, 1e5]),
    st.sampled_from([0.0, 1e-3, 1e6]),
    st.sampled_from([0.0, 1.0, 4e5]),
)
def test_whatever_was_fitted_and_counted_gives_shares(
    costs: list[float], requests: float, tokens: float, kv_tokens: float
) -> None:
    odd = engine(model=EngineModel(coefficients=tuple(costs)), token_s=1e-9, kv_tokens=kv_tokens, context=1.0)
    course = Course(of=odd)
    with np.errstate(invalid="raise", divide="raise", over="raise"):
        for running in (0.0, 1e6, 0.0):
            course.turn((requests, tokens), running=running, ready=2)
    shares = course.bank.misses(len(FLEETS)).shares
    assert ((shares >= 0) & (shares <= 1 + 1e-6)).all()


def test_growth_is_that_of_one_span_over_the_one_before() -> None:
    course = Course()
    assert course.bank.growth(120) == 1
    course.steady(10, 120)
    assert course.bank.growth(120) == 1, "nothing is known of what was before"
    course.steady(25, 120)
    assert course.bank.growth(120) == pytest.approx(2.5)
    assert course.bank.growth(60) == pytest.approx(1.0)
    course.steady(5, 120)
    assert course.bank.growth(120) == pytest.approx(0.2)


def test_a_gap_in_what_is_seen_is_no_burst() -> None:
    course = Course().steady(10, 60)
    before = course.missed(3)
    course.turn((3000.0, 3_000_000.0), seconds=300.0)
    assert course.missed(3) == pytest.approx(before, abs=0.02)


def test_it_grows_neither_with_turns_nor_with_time_and_survives_json() -> None:
    course = Course().steady(20, 5000)
    assert len(course.bank.slots) <= NUM_SLOTS + 2
    again = Bank.from_json(course.bank.to_json())
    assert again == course.bank
    assert Bank.from_fields(json.loads(course.bank.to_json())) == course.bank


def test_the_look_back_survives_a_restart_in_a_few_kilobytes() -> None:
    course = Course().steady(60, 1200)
    kept = Bank.from_json(course.bank.durable().to_json())
    assert len(course.bank.durable().to_json()) < 4000
    before, after = course.bank.misses(len(FLEETS)), kept.misses(len(FLEETS))
    assert after.requests == pytest.approx(before.requests)
    assert after.shares == pytest.approx(before.shares, abs=1e-4)
    assert kept.dispersion == course.bank.dispersion


def test_other_classes_begin_anew_and_more_replicas_do_not() -> None:
    course = Course().steady(60, 600)
    shares = course.bank.misses(len(FLEETS)).shares[0]
    wider = sizes(200)
    assert values(course.bank.slots[-1].missed[0], len(wider))[: len(FLEETS) - 1] == pytest.approx(
        values(course.bank.slots[-1].missed[0], len(FLEETS))[:-1]
    )
    course.fleets = wider
    assert course.turn((0.0, 0.0)).missed(4) == pytest.approx(float(shares[nearest(FLEETS, 4)]), abs=0.01)
    course.classes = (BACKGROUND,)
    dispersion = course.bank.dispersion
    assert course.turn((1.0, 1000.0)).bank.misses(len(wider)).requests == (1.0,)
    assert course.bank.dispersion.turns > dispersion.turns * 0.9, "clients are the same as before"


@given(st.integers(1, 5000))
def test_there_is_a_fleet_close_to_every_number_of_replicas(replicas: int) -> None:
    assert sizes(5000)[nearest(sizes(5000), replicas)] == pytest.approx(replicas, rel=0.03)


def test_a_curve_is_four_bytes_a_fleet() -> None:
    assert values(curve(FLEETS), len(FLEETS)) == pytest.approx(FLEETS, rel=1e-6)
    assert len(curve(FLEETS)) == 4 * len(FLEETS)
