"""The two generating endpoints: a validated body becomes jobs for the engine and an answer in the right shape.

This is the whole life of a request in the front end: prompt, parameters, one `Job` per choice, pieces, answer.
"""

import secrets
from dataclasses import dataclass

import msgspec
from starlette.types import Send

from capstan_engine.messages import Submit
from capstan_engine.server.answer import Format, Usage, answer_stream, answer_whole
from capstan_engine.server.call import Call
from capstan_engine.server.chat import ChatFormat
from capstan_engine.server.completions import CompletionFormat
from capstan_engine.server.errors import ApiError
from capstan_engine.server.front_end import FrontEnd, Model
from capstan_engine.server.generation import Job, merged, pieces
from capstan_engine.server.logprobs import TokenNames
from capstan_engine.server.prompts import Prompt, num_tokens
from capstan_engine.server.requests import MAX_SEQUENCES, ChatBody, CompletionBody
from capstan_engine.server.sampling import child_seed, sampling_params
from capstan_engine.text import StopStrings


@dataclass(frozen=True)
class Work:
    """A request that is ready for the engine."""

    jobs: list[Job]
    form: Format
    usage: Usage


async def generate(front: FrontEnd, body: ChatBody | CompletionBody, call: Call, send: Send) -> None:
    """Answer one request. Raises `ApiError` or `RequestError` as long as nothing has been sent."""
    with front.counting_refusals():
        _check_fields(body)
    with front.lifecycle.admit():
        with front.counting_refusals():
            work = await _prepared(front.model, body, call)
        sequences = merged([pieces(front.client, front.metrics, job) for job in work.jobs])
        if body.stream:
            await answer_stream(send, sequences, work.form, work.usage, body.stream_options)
        else:
            await answer_whole(send, sequences, work.form, work.usage, call.arrival)


async def _prepared(model: Model, body: ChatBody | CompletionBody, call: Call) -> Work:
    tokens = TokenNames(model.tokenizer, as_ids=bool(body.return_tokens_as_token_ids))
    form: Format
    if isinstance(body, ChatBody):
        prompt = await model.prompts.of_conversation(body, add_special_tokens=bool(body.add_special_tokens))
        prompts, form = [prompt], ChatFormat(body, call, tokens, prompt.token_ids)
    else:
        prompts = await model.prompts.of_completion(body)
        form = CompletionFormat(body, call, tokens, prompts)
    if len(prompts) * body.num_choices > MAX_SEQUENCES:
        raise ApiError.invalid("n", f"Prompts times n must not exceed {MAX_SEQUENCES}.")
    return Work(_jobs(model, body, call, prompts), form, Usage(num_tokens(prompts), body.num_choices))


def _jobs(model: Model, body: ChatBody | CompletionBody, call: Call, prompts: list[Prompt]) -> list[Job]:
    """One job per prompt and choice. Each prompt is seeded as if it had come alone."""
    seed = secrets.randbits(63) if body.seed is None else body.seed
    prompt_param = "messages" if isinstance(body, ChatBody) else "prompt"
    # Time at the gateway is age in the queue, but not latency of this engine.
    arrival_time, ttft_s = call.arrival - call.waited_s, call.slo_class.ttft_seconds
    jobs: list[Job] = []
    for prompt in prompts:
        num_prompt = len(prompt.token_ids)
        params = sampling_params(body, model.facts, num_prompt_tokens=num_prompt, seed=0, prompt_param=prompt_param)
        for choice in range(body.num_choices):
            index = len(jobs)
            submit = Submit(
                request_id=f"{call.id}-{index}",
                prompt_token_ids=prompt.token_ids,
                params=msgspec.structs.replace(params, seed=child_seed(seed, choice)),
                arrival_time=arrival_time,
                priority=call.slo_class.priority,
                slo_class=call.slo_class.name,
                deadline=call.deadline,
                first_token_due=None if ttft_s is None else arrival_time + ttft_s,
            )
            jobs.append(
                Job(
                    index=index,
                    submit=submit,
                    detokenizer=model.tokenizer.detokenizer(
                        skip_special_tokens=body.skip_special_tokens is not False, context=prompt.token_ids
                    ),
                    stops=StopStrings(body.stops, include=bool(body.include_stop_str_in_output)),
                    arrival=call.arrival,
                    requested_stop_ids=frozenset(body.stop_token_ids or ()),
                    shows_stop=bool(body.include_stop_str_in_output),
                    silent=body.wanted_tokens == 0,
                )
            )
    return jobs


def _check_fields(body: ChatBody | CompletionBody) -> None:
    """What fields mean to each other."""
    if body.stream_options is not None and not body.stream:
        raise ApiError.invalid("stream_options", "'stream_options' is only allowed with stream true.")
    if body.prompt_logprobs is not None and body.stream:
        raise ApiError.invalid("prompt_logprobs", "'prompt_logprobs' is not available with stream true.")
    if isinstance(body, ChatBody):
        if body.top_logprobs and not body.logprobs:
            raise ApiError.invalid("top_logprobs", "'top_logprobs' needs logprobs true.")
    elif (body.best_of or 0) > body.num_choices:
        raise ApiError.invalid("best_of", "'best_of' greater than n is not supported.", code="unsupported_parameter")
