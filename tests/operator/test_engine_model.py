"""The step-time model: learns what is there, keeps its head among outliers, follows a lasting change."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import samples

from capstan_operator.decide.fleets.engine_model import EngineModel
from capstan_operator.decide.seen.steps import StepSample

COSTS = (0.004, 0.0002, 0.001, 2e-7, 1e-8)


def noisy(count: int, costs: tuple[float, ...], seed: int, jitter: float) -> list[StepSample]:
    random = Random(seed)
    made = []
    for i in range(count):
        prefill, sequences = random.choice([0, 0, 64, 256, 700]), random.randint(0, 30)
        if prefill + sequences == 0:
            continue
        context, pairs = sequences * random.randint(50, 900), prefill * random.randint(20, 600)
        features = (1, prefill, sequences, context, pairs)
        exact = sum(c * x for c, x in zip(costs, features, strict=True))
        made.append(StepSample(i, 0.0, exact * random.gauss(1, jitter), prefill, sequences, context, pairs))
    return made


def worst_error(model: EngineModel, costs: tuple[float, ...]) -> float:
    def exact(*features: float) -> float:
        return sum(c * x for c, x in zip(costs, (1.0, *features), strict=True))

    shapes = [(0.0, 8.0, 3000.0, 0.0), (512.0, 20.0, 9000.0, 120_000.0), (128.0, 4.0, 1000.0, 8000.0)]
    return max(abs(model.step_seconds(*s) / exact(*s) - 1) for s in shapes)


def test_exact_steps_are_learnt_exactly() -> None:
    model = EngineModel().learn(noisy(400, COSTS, 0, 0.0))
    assert model.is_usable
    assert worst_error(model, COSTS) < 0.005
    assert model.error < 0.02


@pytest.mark.parametrize("seed", range(3))
def test_jitter_and_a_few_stalls_do_not_mislead(seed: int) -> None:
    steps = noisy(800, COSTS, seed, 0.1)
    stalled = [s._replace(seconds=s.seconds * (4 if i % 15 == 14 else 1)) for i, s in enumerate(steps)]
    assert worst_error(EngineModel().learn(stalled), COSTS) < 0.10


def test_a_lasting_change_is_followed() -> None:
    model = EngineModel().learn(noisy(2000, COSTS, 0, 0.05))
    slower = tuple(2 * c for c in COSTS)
    for batch in range(120):
        model = model.learn(noisy(100, slower, batch, 0.05))
    assert worst_error(model, slower) < 0.15


@pytest.mark.parametrize("factor", [0.2, 0.5, 1.0, 2.0, 5.0])
def test_a_model_that_was_given_is_of_use_at_once_and_gives_way_to_what_is_measured(factor: float) -> None:
    given_costs = tuple(factor * c for c in COSTS)
    model = EngineModel.given(given_costs)
    assert model.is_usable
    assert worst_error(model, given_costs) < 1e-9
    # Coefficients that nothing has been measured of are those that were given.
    untold = model.learn([s._replace(prefill_tokens=0, attention_pairs=0) for s in noisy(60, given_costs, 1, 0.0)])
    assert untold.prefill_token_seconds(1) == pytest.approx(model.prefill_token_seconds(1), rel=0.2)
    for batch in range(30):
        model = model.learn(noisy(100, COSTS, batch, 0.05))
    assert worst_error(model, COSTS) < 0.05


def test_it_is_of_no_use_before_it_saw_prefill_and_decode() -> None:
    decode_only = [s._replace(prefill_tokens=0) for s in samples(100)]
    assert not EngineModel().learn(samples(10)).is_usable
    assert not EngineModel().learn(decode_only).is_usable
    assert EngineModel().learn(samples(100)).is_usable


def test_it_is_of_use_although_all_of_the_prefill_is_told_as_attention() -> None:
    model = EngineModel().learn(samples(400, costs=(0.002, 0.0, 1e-4, 2e-6, 6e-6)))
    assert model.coefficients[1] == pytest.approx(0, abs=1e-6)
    for told in (model, model.changed(coefficients=(0.002, 0.0, 1e-4, 2e-6, 6e-6))):
        assert told.is_usable
        assert told.prefill_token_seconds(200) == pytest.approx(6e-4, rel=0.05)


def test_one_portion_is_enough_to_know_how_far_it_is_off() -> None:
    assert EngineModel().learn(samples(100)).error < EngineModel().error / 2


@given(
    st.lists(
        st.builds(
            StepSample,
            st.integers(0, 9),
            st.floats(),
            st.floats(),
            st.integers(-5, 10**12),
            st.integers(-5, 10**12),
            st.integers(-5, 10**12),
            st.floats(),
        ),
        max_size=30,
    )
)
def test_coefficients_stay_finite_and_physical_whatever_is_fed(hostile: list[StepSample]) -> None:
    model = EngineModel().learn(hostile).learn(samples(60))
    assert all(0 <= c < 1e6 for c in model.coefficients)


def test_nothing_new_is_nothing_learnt() -> None:
    model = EngineModel().learn(samples(60))
    assert model.learn([]) is model
