"""A step log becomes the step model of the engine that wrote it."""

import csv

import numpy as np
import pytest

from capstan_engine.server.step_log import COLUMNS
from capstan_sim.calibration import fitted, named, read
from capstan_sim.errors import SimulationError
from capstan_sim.step_time import StepModel

TRUTH = StepModel(0.012, 9e-5, 4e-4, 2e-8, 3e-9, kv_tokens=50_000)


@pytest.fixture
def step_log(tmp_path):
    def write(num_steps: int, noise: float = 0.02, columns=COLUMNS, pause_s: float = 0.0):
        rng, now = np.random.default_rng(1), 0.0
        path = tmp_path / "steps.csv"
        with path.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(columns)
            for number in range(1, num_steps + 1):
                prefill = int(rng.integers(0, 900)) * (number % 3 == 0)
                sequences = int(rng.integers(1, 60))
                work = (
                    prefill,
                    sequences,
                    sequences * int(rng.integers(50, 3000)),
                    prefill * int(rng.integers(1, 4000)),
                )
                seconds = TRUTH.seconds(*work) * (1 + noise * rng.standard_normal())
                now += pause_s + seconds
                rows.writerow((number, now, seconds, *work)[: len(columns)])
        return path

    return write


def test_the_fit_predicts_what_the_engine_took(step_log):
    fit = fitted(read(step_log(3000)), kv_tokens=50_000)
    assert fit.num_steps == 3000
    assert fit.error < 0.05
    for work in ((0, 8, 9_000, 0), (800, 20, 30_000, 900_000), (0, 55, 120_000, 0)):
        assert fit.model.seconds(*work) == pytest.approx(TRUTH.seconds(*work), rel=0.02)
    assert fit.model.kv_tokens == 50_000


def test_what_lies_between_steps_and_around_them_counts(step_log):
    fit = fitted(read(step_log(3000, pause_s=0.004)), kv_tokens=50_000)
    assert fit.model.base_s == pytest.approx(fitted(read(step_log(3000)), 50_000).model.base_s + 0.004, rel=1e-3)
    assert fit.model.outside_s == 0
    alone = [(tokens, fit.model.seconds(tokens, 0, 0, tokens**2 / 2) + 0.03) for tokens in (10, 400, 2000)]
    assert fit.around(alone).model.outside_s == pytest.approx(0.03)
    assert fit.around([]).model.outside_s == 0


def test_stalls_are_spread_over_all_steps(step_log):
    steps = [
        step._replace(seconds=step.seconds + (0.3 if step.number % 10 == 0 else 0.0)) for step in read(step_log(3000))
    ]
    model = fitted(steps, kv_tokens=50_000).model
    assert sum(model.seconds(*step[3:]) for step in steps) == pytest.approx(sum(step.seconds for step in steps))


def test_a_log_needs_the_size_of_the_cache(step_log):
    path = str(step_log(200))
    assert named(path, 4096).kv_tokens == 4096
    with pytest.raises(SimulationError, match="--kv-tokens"):
        named(path, None)


def test_a_profile_may_be_given_another_cache():
    profile = named("llama3-8b-h100", None)
    assert profile.kv_tokens == 400_000
    assert named("llama3-8b-h100", 1000) == profile.holding(1000)


@pytest.mark.parametrize(
    ("num_steps", "columns", "fault"),
    [(5, COLUMNS, "too few"), (100, COLUMNS[:4], "no step log"), (0, COLUMNS, "too few")],
)
def test_a_log_that_cannot_be_fitted_says_why(step_log, num_steps, columns, fault):
    with pytest.raises(SimulationError, match=fault):
        fitted(read(step_log(num_steps, columns=columns)), kv_tokens=100)
