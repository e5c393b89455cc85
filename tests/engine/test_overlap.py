"""A step launched before the result of the last one: the same answers, and what it may and may not know."""

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan_api.limits import BatchLimits
from capstan_engine.engine import Engine
from capstan_engine.messages import FinishReason, Output, Submit, Update
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import UNKNOWN, StepPlan, StepResult
from engine.scheduler_loop import served
from fakes import FakeRunner, make_submit


class RecordingRunner(FakeRunner):
    """Notes launches and landings in their order."""

    def __init__(self, num_blocks: int = 64) -> None:
        super().__init__(num_blocks=num_blocks)
        self.events: list[tuple[str, int]] = []

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        number = len(self.events)
        self.events.append(("launch", number))
        land = super().launch(plan)

        def landing() -> StepResult:
            self.events.append(("land", number))
            return land()

        return landing


def new_engine(
    runner: FakeRunner, *, overlap: bool = True, max_sequences: int = 4, max_batched_tokens: int = 16
) -> Engine:
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=60,
        limits=BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens),
        max_queued_requests=100,
    )
    ticks = count()
    return Engine(scheduler, runner, overlap=overlap, clock=lambda: float(next(ticks)))


def run(engine: Engine, submits: list[Submit]) -> tuple[dict[str, list[Output]], list[Update]]:
    outputs: dict[str, list[Output]] = {submit.request_id: [] for submit in submits}
    updates = []
    for submit in submits:
        engine.submit(submit)
    while engine.has_work:
        assert len(updates) < 1000, "still working"
        updates.append(engine.step())
        for output in updates[-1].outputs:
            outputs[output.request_id].append(output)
    return outputs, updates


requests = st.lists(
    st.builds(
        make_submit,
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=24),
        seed=st.integers(0, 1),
        max_tokens=st.integers(0, 20),
        min_tokens=st.integers(0, 3),
        stop_token_ids=st.sampled_from([(), tuple(range(0, 97, 7))]),
        logprobs=st.sampled_from([None, 0]),
        prompt_logprobs=st.sampled_from([None, None, 0]),
    ),
    min_size=1,
    max_size=8,
)


def told(outputs: list[Output]) -> list[tuple[object, ...]]:
    """All that does not say when something happened, and whether that is told once."""
    return [
        (
            o.token_ids,
            o.logprobs,
            o.prompt_logprobs,
            o.finish_reason,
            o.stop_token_id,
            o.error,
            o.first_scheduled_time is None,
        )
        for o in outputs
    ]


@settings(max_examples=60)
@given(requests, st.sampled_from([16, 20, 64]), st.sampled_from([1, 3, 16]), st.booleans())
def test_overlapping_steps_tell_every_client_the_same(
    submits: list[Submit], num_blocks: int, max_batched_tokens: int, fails: bool
) -> None:
    """With few blocks requests are preempted while their tokens are in flight, and one of them may fail."""
    named = [
        make_submit(f"{i}", s.prompt_token_ids, **{f: getattr(s.params, f) for f in s.params.__struct_fields__})
        for i, s in enumerate(submits)
    ]
    answers = []
    for overlap in (False, True):
        runner = FakeRunner(num_blocks=num_blocks)
        runner.broken = {"1"} if fails else set()
        engine = new_engine(runner, overlap=overlap, max_batched_tokens=max_batched_tokens)
        outputs, updates = run(engine, named)
        assert engine.state().blocks_held == 0
        assert sum(len(update.steps) for update in updates) == len(runner.plans)
        answers.append({name: told(of) for name, of in outputs.items()})
    assert answers[0] == answers[1]


def test_a_step_is_launched_before_the_one_before_lands_and_not_two() -> None:
    runner = RecordingRunner()
    run(new_engine(runner), [make_submit(max_tokens=4)])
    # The last launch is of an empty step, when only the end is waited for.
    assert [name for name, _ in runner.events] == ["launch", *["launch", "land"] * 4, "land"]
    runner = RecordingRunner()
    run(new_engine(runner, overlap=False), [make_submit(max_tokens=4)])
    assert [name for name, _ in runner.events] == ["launch", "land"] * 4


def test_the_last_token_by_length_is_known_beforehand_and_nothing_is_computed_for_it() -> None:
    counts = []
    for overlap in (False, True):
        runner = FakeRunner()
        run(new_engine(runner, overlap=overlap), [make_submit("a", max_tokens=5), make_submit("b", max_tokens=2)])
        counts.append([served(plan) for plan in runner.plans])
    assert counts[0] == counts[1]


def test_a_stop_id_is_learned_one_step_late_and_what_was_computed_meanwhile_is_dropped() -> None:
    free, _ = run(new_engine(FakeRunner()), [make_submit(max_tokens=20)])
    tokens = [output.token_ids[0] for output in free["r"]]
    stop = tokens[6]
    runner = FakeRunner()
    outputs, updates = run(new_engine(runner), [make_submit(max_tokens=20, stop_token_ids=(stop,))])
    num_drawn = tokens.index(stop) + 1
    assert [o.token_ids[0] for o in outputs["r"]] == tokens[:num_drawn]
    assert outputs["r"][-1].finish_reason is FinishReason.STOP
    assert len(runner.plans) == num_drawn + 1
    assert runner.plans[-1].scheduled[0].token_ids == [UNKNOWN]
    assert updates[-1].state.blocks_held == 0


def test_blocks_of_a_request_that_ended_may_be_taken_while_its_last_step_is_in_flight() -> None:
    """The dropped step writes to them first, since steps run in order."""
    free, _ = run(new_engine(FakeRunner()), [make_submit("a", max_tokens=20)])
    stop = free["a"][2].token_ids[0]
    waiting = make_submit("b", range(50, 58), max_tokens=20)
    alone, _ = run(new_engine(FakeRunner(num_blocks=7)), [waiting])
    together, _ = run(
        new_engine(FakeRunner(num_blocks=7), max_sequences=1),
        [make_submit("a", max_tokens=20, stop_token_ids=(stop,)), waiting],
    )
    assert told(together["b"]) == told(alone["b"])


def test_a_request_that_only_waits_for_its_end_leaves_its_blocks_to_whoever_needs_one() -> None:
    """Otherwise the other one would be preempted a step before there is room."""
    engine = new_engine(FakeRunner(num_blocks=4), max_sequences=2)
    # In the sixth step the first one needs a third block. The second has two, and draws its last token in the fifth.
    submits = [make_submit("a", range(4), max_tokens=8), make_submit("b", [60], max_tokens=5)]
    alone, _ = run(new_engine(FakeRunner()), submits[:1])
    outputs, updates = run(engine, submits)
    assert told(outputs["a"]) == told(alone["a"])
    assert updates[-1].state.preemptions == 0
    assert updates[-1].state.blocks_held == 0


def test_a_prompt_that_was_only_to_be_computed_ends_without_the_blocks_that_it_has_left() -> None:
    engine = new_engine(FakeRunner(num_blocks=4), max_sequences=3)
    # In the second step both others need a second block, and one is free.
    submits = [make_submit("a", range(4)), make_submit("b", range(4, 8)), make_submit("c", [60], max_tokens=0)]
    outputs, _ = run(engine, submits)
    assert [output.finish_reason for output in outputs["c"]] == [FinishReason.LENGTH]


def test_what_is_in_flight_is_work_until_it_has_landed() -> None:
    runner = RecordingRunner()
    engine = new_engine(runner)
    engine.submit(make_submit())
    assert engine.step().outputs == []
    engine.abort(["r"])
    assert engine.has_work
    assert engine.step().outputs == []
    assert not engine.has_work
    assert [name for name, _ in runner.events].count("land") == 2


def test_the_seconds_of_overlapping_steps_are_no_ones_twice() -> None:
    engine = new_engine(FakeRunner())
    before = engine.state().time
    _, updates = run(engine, [make_submit(max_tokens=10)])
    state = updates[-1].state
    assert 0 < state.busy_seconds <= state.time - before
    # The last boundary had nothing to compute, only to land.
    assert sum(sample.seconds for update in updates for sample in update.steps) <= state.busy_seconds
    assert [sample.number for update in updates for sample in update.steps] == list(range(1, 11))


def test_an_expired_request_ends_while_its_token_is_in_flight() -> None:
    engine = new_engine(FakeRunner())
    engine.submit(make_submit(max_tokens=50, deadline=8.0))
    outputs = []
    while engine.has_work:
        outputs += engine.step().outputs
    assert outputs[-1].finish_reason is FinishReason.DEADLINE
    assert all(output.finish_reason is None for output in outputs[:-1])
    assert engine.state().blocks_held == 0


@pytest.mark.parametrize("overlap", [False, True])
def test_a_device_that_fails_ends_the_engine(overlap: bool) -> None:
    runner = FakeRunner()
    engine = new_engine(runner, overlap=overlap)
    engine.submit(make_submit())
    engine.step()
    runner.explode = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.step()
