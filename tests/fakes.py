"""Stand-ins for the expensive parts, honest enough to catch real mistakes.

`FakeRunner` is a model without tensors. It keeps a KV cache, slot by slot, of what would determine K and V there: the
token and its whole past. A next token is a hash of what the block table leads to, so a block that is shared, freed or
overwritten wrongly changes the output, exactly as it would with a real model.
"""

import hashlib
import time
from collections.abc import Callable, Iterable

from capstan_api.engine_args import EngineArgs
from capstan_engine.engine import Engine
from capstan_engine.messages import SamplingParams, Submit, TokenLogprobs
from capstan_engine.scheduler.scheduler import Scheduler
from capstan_engine.scheduler.step import UNKNOWN, Sampled, ScheduledRequest, StepPlan, StepResult
from memory_figures import FIGURES


def digest(*parts: object) -> int:
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


class FakeRunner:
    """Deterministic next tokens. `broken` request ids fail alone; `explode` fails the whole batch; `step_s` is real."""

    def __init__(self, num_blocks: int = 64, block_size: int = 4, vocab_size: int = 97, step_s: float = 0.0) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.figures = FIGURES
        self.broken: set[str] = set()
        self.explode = False
        self.step_s = step_s
        self.plans: list[StepPlan] = []
        self._slots: dict[tuple[int, int], int] = {}
        self._drawn: dict[str, int] = {}

    def warm_up(self) -> None:
        pass

    def launch(self, plan: StepPlan) -> Callable[[], StepResult]:
        result = self.execute(plan) if plan else StepResult()
        return lambda: result

    def execute(self, plan: StepPlan) -> StepResult:
        if self.explode:
            raise RuntimeError("the device is gone")
        self.plans.append(plan)
        if self.step_s:
            time.sleep(self.step_s)
        result = StepResult()
        for request in plan.scheduled:
            past = self._past(request)
            self._write(request, past)
            if request.request_id in self.broken:
                result.errors[request.request_id] = "logits are not finite"
                continue
            if request.params.prompt_logprobs is not None:
                result.prompt_logprobs[request.request_id] = list(self._prompt_logprobs(request))
            if request.samples:
                token = self._sample(request, self._past(request, request.start + request.num_tokens))
                logprobs = None if request.params.logprobs is None else _logprobs(token)
                result.sampled[request.request_id] = Sampled(token, logprobs)
        self._drawn = {request_id: sampled.token_id for request_id, sampled in result.sampled.items()}
        return result

    def _past(self, request: ScheduledRequest, length: int | None = None) -> int:
        """Hash of the cache content that `request` sees at positions below `length`."""
        past = 0
        for position in range(request.start if length is None else length):
            past = digest(past, self._slots[self._slot(request, position)])
        return past

    def _slot(self, request: ScheduledRequest, position: int) -> tuple[int, int]:
        return request.block_table[position // self.block_size], position % self.block_size

    def _write(self, request: ScheduledRequest, past: int) -> None:
        for position, token in enumerate(request.token_ids, request.start):
            # One that failed has drawn nothing; what follows it is dropped.
            known = self._drawn.get(request.request_id, 0) if token == UNKNOWN else token
            value = digest("kv", past, known)
            self._slots[self._slot(request, position)] = value
            past = digest(past, value)

    def _sample(self, request: ScheduledRequest, past: int) -> int:
        params = request.params
        masked = params.stop_token_ids if request.position < params.min_tokens else ()
        return next(
            token
            for attempt in range(1000)
            if (token := digest("next", past, params.seed, attempt) % self.vocab_size) not in masked
        )

    def _prompt_logprobs(self, request: ScheduledRequest) -> Iterable[TokenLogprobs]:
        end = min(request.start + request.num_tokens + 1, len(request.prompt_token_ids))
        return (_logprobs(token) for token in request.prompt_token_ids[request.start + 1 : end])


def _logprobs(token: int) -> TokenLogprobs:
    return TokenLogprobs(ids=(token,), logprobs=(-float(token),), rank=1)


def fake_engine(args: EngineArgs) -> Engine:
    """What `build_engine` makes, around a fake runner. A model directory called `fails` fails in its first step.

    One called `slow` takes 5 ms a step: long requests are still running when a test turns to them.
    """
    runner = FakeRunner(num_blocks=256, block_size=args.block_size, step_s=0.005 if args.model.name == "slow" else 0.0)
    runner.explode = args.model.name == "fails"
    scheduler = Scheduler(
        num_blocks=runner.num_blocks,
        block_size=runner.block_size,
        max_model_len=args.max_model_len,
        limits=args.envelope.top,
        max_queued_requests=args.max_queued_requests,
    )
    return Engine(scheduler, runner)


def make_submit(
    request_id: str = "r",
    prompt: Iterable[int] = (1, 2, 3),
    *,
    arrival_time: float = 0.0,
    priority: int = 0,
    deadline: float | None = None,
    first_token_due: float | None = None,
    cache_salt: str = "",
    seed: int = 0,
    max_tokens: int = 8,
    **params: object,
) -> Submit:
    """A request with short defaults; other keywords go to its sampling parameters."""
    return Submit(
        request_id=request_id,
        prompt_token_ids=list(prompt),
        params=SamplingParams(seed=seed, max_tokens=max_tokens, **params),  # type: ignore[arg-type]
        arrival_time=arrival_time,
        priority=priority,
        deadline=deadline,
        first_token_due=first_token_due,
        cache_salt=cache_salt,
    )
