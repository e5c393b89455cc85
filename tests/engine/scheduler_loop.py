"""The scheduler with a runner that computes nothing, stepped by hand: what the tests of the scheduler share."""

from capstan_api.limits import BatchLimits
from capstan_engine.messages import FinishReason, Output, Submit
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import StepPlan, StepResult
from fakes import FakeRunner


class Loop:
    """A scheduler, a fake runner and a clock that stands still unless told."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        max_sequences: int = 8,
        max_batched_tokens: int = 64,
        max_queued_requests: int = 100,
        max_model_len: int = 200,
        prefix_caching: bool = True,
    ) -> None:
        self.runner = FakeRunner(num_blocks=num_blocks, block_size=4)
        self.scheduler = Scheduler(
            num_blocks=num_blocks,
            block_size=4,
            max_model_len=max_model_len,
            limits=BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens),
            max_queued_requests=max_queued_requests,
            prefix_caching=prefix_caching,
        )
        self.now = 0.0

    def submit(self, *submits: Submit) -> None:
        for submit in submits:
            self.scheduler.submit(submit)

    def step(self) -> tuple[StepPlan, list[Output]]:
        plan = self.scheduler.plan(self.now)
        result = self.runner.execute(plan) if plan else StepResult()
        return plan, self.scheduler.commit(plan, result, self.now)

    def finish(self, max_steps: int = 1000) -> dict[str, list[Output]]:
        """Run until nothing is left; outputs by request."""
        outputs: dict[str, list[Output]] = {}
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                return outputs
            for output in self.step()[1]:
                outputs.setdefault(output.request_id, []).append(output)
        raise AssertionError(f"still working after {max_steps} steps")

    def limit(self, max_sequences: int, max_batched_tokens: int) -> None:
        self.scheduler.set_limits(BatchLimits(max_sequences=max_sequences, max_batched_tokens=max_batched_tokens))


def served(plan: StepPlan) -> dict[str, int]:
    """Tokens per request in a step."""
    return {s.request_id: s.num_tokens for s in plan.scheduled}


def reason(outputs: list[Output]) -> FinishReason | None:
    return outputs[-1].finish_reason
