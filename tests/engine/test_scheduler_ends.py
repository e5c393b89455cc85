"""How requests end: stop ids, lengths, errors, deadlines and aborts."""

from capstan_engine.messages import FinishReason
from engine.scheduler_loop import Loop, reason, served
from fakes import FakeRunner, make_submit


def test_a_stop_id_ends_the_request_and_is_its_last_token() -> None:
    free = Loop()
    free.submit(make_submit(max_tokens=20))
    tokens = [o.token_ids[0] for o in free.finish()["r"]]
    stop = tokens[6]
    loop = Loop()
    loop.submit(make_submit(max_tokens=20, stop_token_ids=(stop,)))
    outputs = loop.finish()["r"]
    assert [o.token_ids[0] for o in outputs] == tokens[: tokens.index(stop) + 1]
    assert (outputs[-1].finish_reason, outputs[-1].stop_token_id) == (FinishReason.STOP, stop)


def test_a_stop_id_within_min_tokens_ends_nothing() -> None:
    class Stubborn(FakeRunner):
        """Draws the stop id although it should be masked."""

        def _sample(self, request: object, past: int) -> int:
            return 7

    loop = Loop()
    loop.runner = Stubborn(block_size=4)
    loop.submit(make_submit(max_tokens=20, min_tokens=3, stop_token_ids=(7,)))
    assert len(loop.finish()["r"]) == 4


def test_the_last_token_by_stop_id_is_a_stop_and_not_a_length() -> None:
    free = Loop()
    free.submit(make_submit(max_tokens=3))
    last = free.finish()["r"][-1].token_ids[0]
    loop = Loop()
    loop.submit(make_submit(max_tokens=3, stop_token_ids=(last,)))
    assert reason(loop.finish()["r"]) is FinishReason.STOP


def test_max_model_len_ends_a_request_with_length() -> None:
    loop = Loop(max_model_len=10)
    loop.submit(make_submit(prompt=range(6), max_tokens=100))
    outputs = loop.finish()["r"]
    assert len(outputs) == 4
    assert reason(outputs) is FinishReason.LENGTH


def test_max_tokens_0_computes_the_prompt_and_draws_nothing() -> None:
    loop = Loop(max_batched_tokens=4, max_model_len=10)
    loop.submit(make_submit(prompt=range(10), max_tokens=0, prompt_logprobs=0))
    (output,) = loop.finish()["r"]
    assert (output.token_ids, output.finish_reason) == ([], FinishReason.LENGTH)
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == 10


def test_a_request_that_fails_alone_leaves_the_others_and_its_blocks_unshared() -> None:
    loop = Loop()
    loop.runner.broken = {"bad"}
    loop.submit(make_submit("bad", range(16)), make_submit("good", range(16, 32)))
    outputs = loop.finish()
    assert (reason(outputs["bad"]), outputs["bad"][-1].error) == (FinishReason.ERROR, "logits are not finite")
    assert len(outputs["good"]) == 8
    loop.submit(make_submit("again", range(16), max_tokens=1))
    assert loop.finish()["again"][0].num_cached_tokens == 0


def test_blocks_of_a_failing_request_are_withdrawn_from_the_cache() -> None:
    loop = Loop(max_batched_tokens=8)
    loop.submit(make_submit("bad", range(16)))
    loop.step()
    loop.runner.broken = {"bad"}
    loop.finish()
    assert loop.scheduler.pool.num_cached == 0


def test_a_request_that_expired_while_waiting_is_never_computed() -> None:
    loop = Loop(max_sequences=1)
    loop.submit(make_submit("running"), make_submit("late", deadline=1.0))
    loop.step()
    loop.now = 2.0
    outputs = loop.finish()
    assert [o.finish_reason for o in outputs["late"]] == [FinishReason.DEADLINE]
    assert outputs["late"][0].first_scheduled_time is None
    assert all("late" not in served(plan) for plan in loop.runner.plans)


def test_a_running_request_ends_at_the_first_boundary_after_its_deadline() -> None:
    loop = Loop()
    loop.submit(make_submit(deadline=1.0, max_tokens=100))
    loop.step()
    loop.now = 1.0
    assert loop.step()[1][0].finish_reason is None
    loop.now = 1.1
    plan, outputs = loop.step()
    assert not plan
    assert [o.finish_reason for o in outputs] == [FinishReason.DEADLINE]
    assert loop.scheduler.pool.num_held == 0


def test_a_used_id_is_not_ended_by_its_predecessors_deadline() -> None:
    loop = Loop()
    loop.submit(make_submit(deadline=1.0))
    loop.scheduler.abort(["r"])
    loop.submit(make_submit())
    loop.now = 5.0
    assert reason(loop.finish()["r"]) is FinishReason.LENGTH


def test_an_abort_between_plan_and_commit_drops_the_result_and_frees_the_blocks() -> None:
    loop = Loop()
    loop.submit(make_submit("gone", range(16)), make_submit("stays", range(16, 32)))
    plan = loop.scheduler.plan(0.0)
    result = loop.runner.execute(plan)
    loop.scheduler.abort(["gone", "unknown"])
    outputs = loop.scheduler.commit(plan, result, 0.0)
    assert [o.request_id for o in outputs] == ["stays"]
    assert loop.scheduler.pool.num_cached == 0
    assert len(loop.finish()["stays"]) == 7


def test_a_result_never_reaches_a_later_request_of_the_same_id() -> None:
    loop = Loop()
    loop.submit(make_submit(prompt=[1, 2, 3]))
    plan = loop.scheduler.plan(0.0)
    result = loop.runner.execute(plan)
    loop.scheduler.abort(["r"])
    loop.submit(make_submit(prompt=[4, 5, 6]))
    assert loop.scheduler.commit(plan, result, 0.0) == []
    assert len(loop.finish()["r"]) == 8


def test_prompt_log_probabilities_come_once_when_a_request_is_preempted_within_its_prompt() -> None:
    asked = make_submit("asked", range(50, 74), max_tokens=2, prompt_logprobs=0)
    alone = Loop()
    alone.submit(asked)
    expected = alone.finish()["asked"][0].prompt_logprobs
    loop = Loop(num_blocks=10, max_batched_tokens=16)
    loop.submit(make_submit("first", range(11), max_tokens=12), asked)
    loop.step()
    # So slow that the first needs its fifth block before the prompt is through.
    loop.limit(8, 3)
    outputs = loop.finish()
    assert loop.scheduler.num_preemptions > 0
    assert outputs["asked"][0].prompt_logprobs == expected
