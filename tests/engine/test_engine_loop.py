"""One step of the engine: what it reports of itself, and what it keeps out."""

from itertools import count

import pytest

from capstan_api.limits import BatchLimits
from capstan_engine.engine import Engine
from capstan_engine.errors import RequestError
from capstan_engine.messages import FinishReason, Update
from capstan_engine.scheduler.scheduler import Scheduler
from fakes import FakeRunner, make_submit


def new_engine(runner: FakeRunner | None = None, *, max_batched_tokens: int = 16) -> Engine:
    """An engine whose clock advances one second per look."""
    runner = runner or FakeRunner()
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=100,
        limits=BatchLimits(max_sequences=4, max_batched_tokens=max_batched_tokens),
        max_queued_requests=8,
    )
    ticks = count()
    return Engine(scheduler, runner, clock=lambda: float(next(ticks)))


def run(engine: Engine) -> list[Update]:
    updates = []
    while engine.has_work:
        updates.append(engine.step())
    return updates


def test_every_step_is_recorded_with_what_it_computed() -> None:
    engine = new_engine()
    engine.submit(make_submit(prompt=range(20), max_tokens=3))
    samples = [sample for update in run(engine) for sample in update.steps]
    assert [s.number for s in samples] == [1, 2, 3, 4]
    assert [s.prefill_tokens for s in samples] == [16, 4, 0, 0]
    assert [s.decode_sequences for s in samples] == [0, 0, 1, 1]
    assert [s.context_tokens for s in samples] == [0, 0, 21, 22]
    assert [s.attention_pairs for s in samples] == [128, 72, 0, 0]


def test_the_last_token_of_a_prompt_is_prefill_even_when_it_comes_alone() -> None:
    engine = new_engine()
    engine.submit(make_submit(prompt=range(17), max_tokens=1))
    samples = [sample for update in run(engine) for sample in update.steps]
    assert [(s.prefill_tokens, s.decode_sequences) for s in samples] == [(16, 0), (1, 0)]


def test_busy_seconds_are_the_sum_of_the_steps() -> None:
    engine = new_engine()
    engine.submit(make_submit())
    updates = run(engine)
    assert updates[-1].state.busy_seconds == sum(s.seconds for u in updates for s in u.steps)
    assert updates[-1].state.steps == len(updates)


def test_a_boundary_that_only_ends_expired_requests_is_no_step() -> None:
    engine = new_engine()
    engine.submit(make_submit(deadline=-1.0))
    (update,) = run(engine)
    assert [o.finish_reason for o in update.outputs] == [FinishReason.DEADLINE]
    assert update.steps == []
    assert update.state.steps == 0


def test_every_state_is_a_new_heartbeat_and_shows_the_books() -> None:
    engine = new_engine()
    assert engine.state().heartbeat < engine.state().heartbeat
    engine.submit(make_submit("a", range(9), max_tokens=1))
    engine.submit(make_submit("b", range(20, 50)))
    assert engine.state().waiting == 2
    state = engine.step().state
    assert (state.running, state.waiting, state.blocks_held, state.blocks_cached) == (1, 0, 8, 2)


def test_limits_apply_to_the_next_step() -> None:
    engine = new_engine()
    engine.submit(make_submit(prompt=range(30)))
    engine.set_limits(BatchLimits(max_sequences=1, max_batched_tokens=5))
    update = engine.step()
    assert update.steps[0].prefill_tokens == 5
    assert (update.state.max_sequences, update.state.max_batched_tokens) == (1, 5)


@pytest.mark.parametrize("prompt", [[97], [-1], [3, 2**63]])
def test_token_ids_outside_the_vocabulary_never_reach_the_model(prompt: list[int]) -> None:
    engine = new_engine()
    with pytest.raises(RequestError, match="from 0 to 96") as error:
        engine.submit(make_submit(prompt=prompt))
    assert error.value.param == "prompt"
    assert not engine.has_work


def test_an_error_of_the_runner_for_the_whole_batch_is_not_swallowed() -> None:
    runner = FakeRunner()
    engine = new_engine(runner)
    engine.submit(make_submit())
    runner.explode = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()


def test_an_aborted_request_leaves_no_work_and_no_blocks() -> None:
    engine = new_engine()
    engine.submit(make_submit())
    engine.step()
    engine.abort(["r", "unknown"])
    assert not engine.has_work
    assert engine.state().blocks_held == 0
