"""An engine that says what it is told to: the front end's tests need known text, not a known model.

Implements `EngineClient`. A `Script` decides each request's tokens; `gate` holds requests back until a test opens it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from time import monotonic

from capstan_api.limits import BatchLimits
from capstan_engine.errors import CapstanEngineError, EngineDead
from capstan_engine.messages import CoreState, FinishReason, Loading, Output, Ready, Submit, TokenLogprobs, Update
from memory_figures import FIGURES

Script = Callable[[Submit], list[int]]

VOCAB_SIZE = 4096
EOS = 1


def idle_state() -> CoreState:
    return CoreState(
        time=monotonic(), heartbeat=1, steps=0, running=0, waiting=0, prefill_backlog=0, blocks_total=100,
        blocks_held=0, blocks_cached=0,
        prefix_queries=0, prefix_hits=0, preemptions=0, busy_seconds=0.0, max_sequences=8, max_batched_tokens=64,
    )  # fmt: skip


def logprobs_of(token: int, num: int) -> TokenLogprobs:
    """Plausible alternatives: the token itself first and likeliest, then its neighbours."""
    ids = (token, *((token + k) % VOCAB_SIZE for k in range(1, num)))
    return TokenLogprobs(ids=ids, logprobs=tuple(-0.5 - k for k in range(len(ids))), rank=1)


class ScriptedClient:
    """`refuse` is raised instead of the first output; `end_with` ends requests after `end_after` tokens."""

    def __init__(self, script: Script, *, max_model_len: int = 256) -> None:
        self.on_update: list[Callable[[Update], None]] = []
        self.on_loading: list[Callable[[Loading], None]] = []
        self.state = idle_state()
        self.last_heartbeat_age_s = 0.0
        self.script = script
        self.max_model_len = max_model_len
        self.refuse: CapstanEngineError | None = None
        self.end_with: FinishReason | None = None
        self.end_after = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.hold_after = 0
        self.submitted: list[Submit] = []
        self.open: set[str] = set()
        self.aborted: list[str] = []
        self.applied: list[BatchLimits] = []
        self.changed = asyncio.Event()
        self.reading = asyncio.Event()
        """Set when a request waits at the closed gate."""
        self._death: asyncio.Future[EngineDead] = asyncio.get_running_loop().create_future()

    @property
    def num_open(self) -> int:
        return len(self.open)

    async def start(self) -> Ready:
        return Ready(
            num_blocks=100,
            block_size=16,
            max_model_len=self.max_model_len,
            vocab_size=VOCAB_SIZE,
            figures=FIGURES.model_dump(),
            startup_seconds={"load": 0.5},
            state=self.state,
        )

    async def generate(self, submit: Submit) -> AsyncGenerator[Output, None]:
        self.submitted.append(submit)
        if self.refuse is not None:
            raise self.refuse
        self.open.add(submit.request_id)
        try:
            async for output in self._outputs(submit):
                if output.finish_reason is not None:
                    self.open.discard(submit.request_id)
                yield output
        finally:
            if submit.request_id in self.open:
                self.open.discard(submit.request_id)
                self.aborted.append(submit.request_id)
                self.changed.set()

    async def _outputs(self, submit: Submit) -> AsyncGenerator[Output, None]:
        params = submit.params
        tokens = self.script(submit)[: params.max_tokens]
        for position, token in enumerate(tokens):
            if position == self.hold_after and not self.gate.is_set():
                self.reading.set()
                await self.gate.wait()
            await asyncio.sleep(0)
            if self._death.done():
                raise self._death.result()
            if self.end_with is not None and position == self.end_after:
                error = "logits are not finite" if self.end_with is FinishReason.ERROR else None
                yield Output(submit.request_id, finish_reason=self.end_with, error=error)
                return
            stopped = token in params.stop_token_ids and position + 1 > params.min_tokens
            last = position + 1 == len(tokens)
            finish = FinishReason.STOP if stopped else FinishReason.LENGTH if last else None
            first = position == 0
            yield Output(
                submit.request_id,
                token_ids=[token],
                logprobs=None if params.logprobs is None else [logprobs_of(token, params.logprobs)],
                prompt_logprobs=self._prompt_logprobs(submit) if first else None,
                finish_reason=finish,
                stop_token_id=token if stopped else None,
                num_cached_tokens=3 if first else 0,
                first_scheduled_time=monotonic() if first else None,
            )
            if stopped:
                return

    def _prompt_logprobs(self, submit: Submit) -> list[TokenLogprobs | None] | None:
        num = submit.params.prompt_logprobs
        if num is None:
            return None
        return [None, *(logprobs_of(token, num) for token in submit.prompt_token_ids[1:])]

    def set_limits(self, limits: BatchLimits) -> None:
        self.applied.append(limits)

    def die(self, reason: str) -> None:
        self._death.set_result(EngineDead(reason))
        self.gate.set()

    async def died(self) -> EngineDead:
        return await asyncio.shield(self._death)

    async def close(self) -> None:
        self.gate.set()
