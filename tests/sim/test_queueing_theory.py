"""Where theory has an exact answer, the simulator gives it."""

import numpy as np
import pytest

from capstan_api.limits import BatchLimits
from capstan_sim.book import Book
from capstan_sim.fleet import Fleet
from capstan_sim.step_time import StepModel
from capstan_sim.workload import Workload

# A step computes one prompt and nothing else: a server with the service time a + b·prompt.
ONE_AT_A_TIME = BatchLimits(max_sequences=1, max_batched_tokens=100_000)
SERVER = StepModel(0.0, 1e-3, 0.0, 0.0, 0.0, 100_000)


def served(workload: Workload, model: StepModel, limits: BatchLimits, num_replicas: int = 1) -> Book:
    book = Book(workload)
    fleet = Fleet(book, model, limits, cold_start_s=1.0)
    for _ in range(num_replicas):
        fleet.launch(ready=True)
    fleet.run(float(workload.arrival[-1]) + 1e6)
    assert len(book.done_times) == len(book)
    return book


def single_server(utilisation: float, prompts: np.ndarray, seed: int) -> Workload:
    """Poisson arrivals of requests of one token, antithetic in pairs of gaps so that the load is nearly exact."""
    rng = np.random.default_rng(seed)
    uniform = rng.random(len(prompts) // 2)
    gaps = -np.log(np.concatenate([uniform, 1 - uniform]))
    gaps *= prompts.mean() * 1e-3 / utilisation / gaps.mean()
    return Workload.of(np.cumsum(rng.permutation(gaps)), prompts, np.ones_like(prompts))


@pytest.mark.parametrize("utilisation", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("lengths", [(100, 100), (20, 400)])
def test_waiting_is_that_of_pollaczek_and_khinchine(utilisation, lengths):
    rng = np.random.default_rng(7)
    prompts = rng.permutation(np.resize(np.array(lengths), 200_000))
    workload = single_server(utilisation, prompts, seed=11)
    book = served(workload, SERVER, ONE_AT_A_TIME)
    waited = np.array(book.started) - np.array(book.arrival)

    # Exactly, on these very arrivals: Lindley's recursion.
    service = prompts * 1e-3
    left = np.concatenate([[0.0], service[:-1] - np.diff(workload.arrival)])
    walk = np.cumsum(left)
    exact = walk - np.minimum.accumulate(walk)
    assert waited == pytest.approx(exact, abs=1e-6)
    # And on average, within what 200,000 draws permit at this load.
    predicted = utilisation * (service**2).mean() / service.mean() / 2 / (1 - utilisation)
    assert waited.mean() == pytest.approx(predicted, rel=0.01 if utilisation < 0.7 else 0.05)


def test_number_in_the_system_is_rate_times_time_in_it():
    rng = np.random.default_rng(3)
    num = 5_000
    workload = Workload.of(np.cumsum(rng.exponential(0.05, num)), rng.integers(1, 900, num), rng.integers(1, 200, num))
    limits = BatchLimits(max_sequences=64, max_batched_tokens=512)
    book = served(workload, StepModel.named("llama3-8b-h100"), limits, num_replicas=2)
    until = max(book.done_times)
    spent = np.array(book.done) - np.array(book.arrival)
    assert book.request_seconds(until) == pytest.approx(spent.sum(), rel=1e-9)


def test_without_terms_for_load_a_token_takes_the_base_time():
    rng = np.random.default_rng(5)
    workload = Workload.of(np.cumsum(rng.exponential(0.1, 300)), [1] * 300, rng.integers(2, 90, 300))
    limits = BatchLimits(max_sequences=64, max_batched_tokens=512)
    book = served(workload, StepModel(0.02, 0.0, 0.0, 0.0, 0.0, 100_000), limits)
    assert book.done_tpots == pytest.approx([0.02] * 300, rel=1e-9)


def test_a_saturated_decode_is_an_arithmetic_series():
    model = StepModel.named("llama3-70b-4xh100")
    num, prompt, output = 100, 10, 1000
    limits = BatchLimits(max_sequences=num, max_batched_tokens=4096)
    # One request of one token holds the replica until all others are there.
    alone_s = model.seconds(1, 0, 0, 0)
    arrivals = [0.0] + [alone_s / 2] * num
    book = served(Workload.of(arrivals, [1] + [prompt] * num, [1] + [output] * num), model, limits)
    first_s = alone_s + model.seconds(num * prompt, 0, 0, num * prompt * prompt // 2)
    steps = output - 1
    context = num * (prompt + 1)
    decode_s = steps * model.seconds(0, num, context, 0) + model.context_token_s * num * steps * (steps - 1) / 2
    assert book.done[1:] == pytest.approx([first_s + decode_s] * num, rel=1e-5)


def test_equal_requests_on_four_replicas_wait_as_in_one_queue_with_four_servers():
    rng = np.random.default_rng(2)
    num, service_s = 20_000, 0.1
    arrivals = np.cumsum(rng.exponential(service_s / 4 / 0.8, num))
    workload = Workload.of(arrivals, [100] * num, [1] * num)
    book = Book(workload)
    # Round robin is what equal requests in one queue get; the fleet's own router looks at numbers, not at work.
    fleets = [Fleet(Book(workload.taken(np.arange(i, num, 4))), SERVER, ONE_AT_A_TIME, 1.0) for i in range(4)]
    for i, fleet in enumerate(fleets):
        fleet.launch(ready=True)
        fleet.run(1e6)
        book.done[i::4] = fleet.book.done
    free = [0.0] * 4
    for arrival, done in zip(book.arrival, book.done, strict=True):
        soonest = min(range(4), key=free.__getitem__)
        free[soonest] = max(arrival, free[soonest]) + service_s
        assert done == pytest.approx(free[soonest], abs=1e-6)
