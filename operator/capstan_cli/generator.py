"""The load generator: sends every request at its own time, whatever became of the ones before it.

Open loop by default: arrivals never wait for answers, as real users do not, so overload shows as latency instead of
being hidden by a slower generator. The closed loop (`saturate`) is there to find what a server can do at most.
Knows nothing of replicas or decisions; it sees what a client sees.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import aiohttp

from capstan_api import names
from capstan_cli import endpoint, prompts
from capstan_cli.endpoint import Answer
from capstan_cli.errors import InputError
from capstan_cli.measure import Outcome, Result
from capstan_cli.traffic import Arrival

_REFUSALS = frozenset({429, 503})


@dataclass(frozen=True)
class Target:
    """Where load goes, and how each request looks."""

    base: str
    model: str
    composer: prompts.Composer
    chat: bool = True
    temperature: float = 0.0
    shared_prefix_tokens: int = 0
    seed: int = 0

    @property
    def url(self) -> str:
        return f"{self.base}/v1/{'chat/completions' if self.chat else 'completions'}"

    def body(self, text: str, output_tokens: int) -> dict[str, object]:
        prompt: dict[str, object] = {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        return {
            "model": self.model,
            **prompt,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def text(self, index: int, prompt_tokens: int) -> str:
        return self.composer.prompt(prompt_tokens, f"{self.seed}/{index}", self.shared_prefix_tokens)


async def connect(
    client: aiohttp.ClientSession,
    base: str,
    model: str | None = None,
    *,
    chat: bool = True,
    temperature: float = 0.0,
    shared_prefix_tokens: int = 0,
    seed: int = 0,
    longest: tuple[int, int] | None = None,
) -> Target:
    """Learn the model's name and calibrate the prompts; `longest` (prompt, output) must fit. Raises `CliError`s."""
    name, max_model_len = await endpoint.served_model(client, base, model)
    if longest is not None and max_model_len is not None and sum(longest) > max_model_len:
        raise InputError(
            f"the longest request has {longest[0]} prompt and {longest[1]} output tokens, {name} takes {max_model_len} "
            "together; cap them with --max-prompt and --max-output"
        )
    composer = await prompts.calibrate(client, base, name, chat=chat)
    return Target(base, name, composer, chat, temperature, shared_prefix_tokens, seed)


async def replay(
    client: aiohttp.ClientSession,
    target: Target,
    arrivals: Sequence[Arrival],
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    start: float | None = None,
) -> list[Outcome]:
    """Send each arrival at its second after `start` (loop clock; now when None); answers in order of arrival.

    Cancelling this cancels every open request.
    """
    clock = asyncio.get_running_loop().time
    # Text is made before the clock starts: the generator must not be late for want of words.
    texts = [target.text(i, a.prompt_tokens) for i, a in enumerate(arrivals)]
    begin = clock() if start is None else start

    async def one(index: int) -> Outcome:
        outcome = await _send(client, target, index, arrivals[index], texts[index], begin)
        on_outcome(outcome)
        return outcome

    async with asyncio.TaskGroup() as group:
        tasks = []
        for index, arrival in enumerate(arrivals):
            wait = begin + arrival.at_s - clock()
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(one(index)))
    return [task.result() for task in tasks]


async def saturate(
    client: aiohttp.ClientSession,
    target: Target,
    lengths: Iterator[Arrival],
    concurrency: int,
    duration_s: float,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Keep `concurrency` requests open for `duration_s`, each worker sending the next when its last has ended."""
    clock = asyncio.get_running_loop().time
    begin = clock()
    outcomes: list[Outcome] = []
    numbered = enumerate(lengths)

    async def worker() -> None:
        while (now := clock() - begin) < duration_s:
            index, arrival = next(numbered)
            planned = Arrival(now, arrival.prompt_tokens, arrival.output_tokens, arrival.slo_class)
            text = target.text(index, arrival.prompt_tokens)
            outcome = await _send(client, target, index, planned, text, begin)
            outcomes.append(outcome)
            on_outcome(outcome)
            if outcome.result is Result.REJECTED:
                # A refused worker that asks again at once would only measure refusals.
                await asyncio.sleep(0.1 + 0.1 * random.random())

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    return sorted(outcomes, key=lambda o: o.index)


async def _send(
    client: aiohttp.ClientSession, target: Target, index: int, arrival: Arrival, text: str, begin: float
) -> Outcome:
    clock = asyncio.get_running_loop().time
    headers = {names.HEADER_SLO_CLASS: arrival.slo_class} if arrival.slo_class else {}
    answer = Answer()
    broken = ""
    sent = clock()
    try:
        async for _ in endpoint.stream(client, target.url, target.body(text, arrival.output_tokens), headers, answer):
            pass
    except TimeoutError:
        broken = "timeout"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        broken = type(error).__name__
    result, detail = judge(answer, broken, arrival.output_tokens)
    usage = answer.usage or {}
    return Outcome(
        index=index,
        slo_class=arrival.slo_class,
        planned_s=arrival.at_s,
        sent_s=sent - begin,
        ended_s=clock() - begin,
        result=result,
        detail=detail,
        first_token_s=None if answer.first_token_at is None else answer.first_token_at - begin,
        last_token_s=None if answer.last_token_at is None else answer.last_token_at - begin,
        wanted_prompt_tokens=arrival.prompt_tokens,
        wanted_output_tokens=arrival.output_tokens,
        prompt_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens", answer.content_events),
        replica=answer.replica,
    )


def judge(answer: Answer, broken: str, wanted_tokens: int) -> tuple[Result, str]:
    """How a request ended, and the error's kind. `broken` names the connection's failure, if any."""
    if answer.status in _REFUSALS:
        return Result.REJECTED, f"{answer.status} {answer.error}"
    if broken:
        return Result.LOST, broken
    if answer.status != 200:
        return Result.FAILED, f"{answer.status} {answer.error}"
    if answer.error:
        return Result.TRUNCATED, answer.error
    if answer.finish_reason is None:
        return Result.TRUNCATED, "no finish reason"
    if not answer.done:
        return Result.TRUNCATED, "no [DONE]"
    got = (answer.usage or {}).get("completion_tokens", answer.content_events)
    if got < wanted_tokens:
        return Result.TRUNCATED, "fewer tokens than asked for"
    return Result.COMPLETED, ""
