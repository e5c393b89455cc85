"""The openai-python client works unmodified, in both its forms."""

import asyncio
from collections.abc import AsyncIterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from scripted_client import ScriptedClient
from serving import TEXT, Served

from capstan_engine.errors import QueueFull
from capstan_engine.messages import FinishReason
from capstan_engine.text import Tokenizer

USER = [{"role": "user", "content": "Say it."}]


@pytest.fixture
async def client(served_on_network: Served) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served_on_network.url}/v1", api_key="any", max_retries=0) as made:
        yield made


async def test_chat(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=USER)
    assert answer.choices[0].message.content == TEXT
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


async def test_sync_client(served_on_network: Served) -> None:
    def ask() -> str | None:
        with OpenAI(base_url=f"{served_on_network.url}/v1", api_key="any", max_retries=0) as sync:
            return sync.chat.completions.create(model="tiny", messages=USER).choices[0].message.content

    assert await asyncio.to_thread(ask) == TEXT


async def test_chat_stream_with_usage(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


async def test_content_parts_are_joined(client: AsyncOpenAI, engine: ScriptedClient, tokenizer: Tokenizer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}])
    assert "one\ntwo" in tokenizer.decode(engine.submitted[0].prompt_token_ids)


async def test_chat_logprobs(client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=USER, logprobs=True, top_logprobs=3, max_completion_tokens=4
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    assert len(content) == 4
    assert content[0].token == "The"
    assert content[0].bytes == list(b"The")
    assert [each.logprob for each in content[0].top_logprobs] == [-0.5, -1.5, -2.5]
    assert content[0].logprob == content[0].top_logprobs[0].logprob


async def test_choices_have_their_own_seeds(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=USER, n=3, seed=7, max_tokens=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    seeds = [submit.params.seed for submit in engine.submitted]
    assert seeds[0] == 7
    assert len(set(seeds)) == 3
    await client.chat.completions.create(model="tiny", messages=USER, n=3, seed=7, max_tokens=2)
    assert [submit.params.seed for submit in engine.submitted[3:]] == seeds


async def test_unseeded_requests_differ(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    for _ in range(2):
        await client.chat.completions.create(model="tiny", messages=USER, max_tokens=1)
    assert engine.submitted[0].params.seed != engine.submitted[1].params.seed


async def test_stop_string_ends_and_aborts(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    answer = await client.chat.completions.create(model="tiny", messages=USER, stop=["own f", "zzz"])
    assert answer.choices[0].message.content == "The quick br"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].model_extra is not None
    assert answer.choices[0].model_extra["stop_reason"] == "own f"
    assert engine.aborted == [engine.submitted[0].request_id]


async def test_stop_string_can_be_shown_and_waits_for_min_tokens(client: AsyncOpenAI) -> None:
    extra = {"include_stop_str_in_output": True}
    answer = await client.completions.create(model="tiny", prompt="x", stop="e", max_tokens=100, extra_body=extra)
    assert answer.choices[0].text == "The"
    extra["min_tokens"] = 5
    answer = await client.completions.create(model="tiny", prompt="x", stop="e", max_tokens=100, extra_body=extra)
    assert answer.choices[0].text.startswith("The quick b")


async def test_completion_batch_keeps_order(client: AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=["a", "b", "c"], n=2, max_tokens=1, echo=True)
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text[0] for choice in answer.choices] == list("aabbcc")


async def test_token_id_prompts_get_nothing_added(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    await client.completions.create(model="tiny", prompt=[[5, 6], [7]], max_tokens=1)
    assert [submit.prompt_token_ids for submit in engine.submitted] == [[5, 6], [7]]


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_log_likelihood_evaluation(client: AsyncOpenAI, max_tokens: int) -> None:
    answer = await client.completions.create(
        model="tiny", prompt=[[5, 6, 7, 8]], echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.top_logprobs is not None
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 4 + max_tokens
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    for token, logprob, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[
        1:
    ]:
        assert top[token] == logprob == max(top.values())
    assert answer.usage is not None
    assert answer.usage.completion_tokens == max_tokens


async def test_completion_stream_matches_the_whole(client: AsyncOpenAI) -> None:
    stream = await client.completions.create(
        model="tiny", prompt="ab", max_tokens=20, stream=True, echo=True, logprobs=1
    )
    chunks = [chunk async for chunk in stream]
    whole = await client.completions.create(model="tiny", prompt="ab", max_tokens=20, echo=True, logprobs=1)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    offsets = [o for chunk in chunks if chunk.choices[0].logprobs for o in chunk.choices[0].logprobs.text_offset or ()]
    assert whole.choices[0].logprobs is not None
    assert offsets == whole.choices[0].logprobs.text_offset


async def test_token_ids_are_returned(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    extra = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    answer = await client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=3, logprobs=True, extra_body=extra
    )
    assert answer.model_extra is not None
    assert answer.model_extra["prompt_token_ids"] == engine.submitted[0].prompt_token_ids
    ids = answer.choices[0].model_extra["token_ids"]  # type: ignore[index]
    assert len(ids) == 3
    assert [entry.token for entry in answer.choices[0].logprobs.content] == [f"token_id:{i}" for i in ids]  # type: ignore[union-attr]


async def test_prompt_logprobs(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=1, extra_body={"prompt_logprobs": 2}
    )
    assert answer.model_extra is not None
    positions = answer.model_extra["prompt_logprobs"]
    prompt = engine.submitted[0].prompt_token_ids
    assert positions[0] is None
    assert len(positions) == len(prompt)
    assert positions[1][str(prompt[1])] == {"logprob": -0.5, "rank": 1, "decoded_token": "<|user|>"}


async def test_vllm_extras_reach_the_engine(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 2, "stop_token_ids": [9]}
    await client.chat.completions.create(
        model="tiny", messages=USER, temperature=0.5, top_p=0.9, logit_bias={"3": -5}, extra_body=extra, max_tokens=3
    )
    params = engine.submitted[0].params
    assert (params.top_k, params.min_p, params.repetition_penalty, params.min_tokens) == (5, 0.1, 1.2, 2)
    assert (params.temperature, params.top_p, params.logit_bias, params.max_tokens) == (0.5, 0.9, {3: -5.0}, 3)
    assert set(params.stop_token_ids) == {1, 9}


async def test_ignore_eos_goes_on_to_the_limit(
    client: AsyncOpenAI, engine: ScriptedClient, tokenizer: Tokenizer
) -> None:
    length = len(tokenizer.encode(TEXT, add_special_tokens=False)) + 5
    answer = await client.chat.completions.create(
        model="tiny", messages=USER, max_tokens=length, extra_body={"ignore_eos": True}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == length
    assert engine.submitted[0].params.stop_token_ids == ()


async def test_length_defaults_to_what_the_context_leaves(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    await client.chat.completions.create(model="tiny", messages=USER)
    submit = engine.submitted[0]
    assert submit.params.max_tokens == engine.max_model_len - len(submit.prompt_token_ids)


async def test_continue_final_message(client: AsyncOpenAI, engine: ScriptedClient, tokenizer: Tokenizer) -> None:
    messages = [*USER, {"role": "assistant", "content": "The answer is"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    await client.chat.completions.create(model="tiny", messages=messages, max_tokens=1, extra_body=extra)  # type: ignore[arg-type]
    assert tokenizer.decode(engine.submitted[0].prompt_token_ids).endswith("The answer is")


async def test_errors_have_the_client_s_types(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        await client.chat.completions.create(model="gpt-9", messages=USER)
    assert not_found.value.code == "model_not_found"
    assert "tiny, other, tiny-fast" in str(not_found.value)
    with pytest.raises(openai.BadRequestError) as too_long:
        await client.completions.create(model="tiny", prompt="x " * 300, max_tokens=10)
    assert too_long.value.code == "context_length_exceeded"
    assert "256" in str(too_long.value)
    assert "max_model_len" in str(too_long.value)
    engine.refuse = QueueFull("256 requests wait", retry_after_seconds=7)
    with pytest.raises(openai.RateLimitError) as full:
        await client.chat.completions.create(model="tiny", messages=USER)
    assert full.value.response.headers["retry-after"] == "7"


async def test_a_stream_that_fails_raises_in_the_client(client: AsyncOpenAI, engine: ScriptedClient) -> None:
    engine.end_with, engine.end_after = FinishReason.ERROR, 3
    stream = await client.chat.completions.create(model="tiny", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="logits are not finite"):
        async for _ in stream:
            pass


async def test_models(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert listed == ["tiny", "other", "tiny-fast"]
    assert (await client.models.retrieve("other")).id == "other"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nothing")
