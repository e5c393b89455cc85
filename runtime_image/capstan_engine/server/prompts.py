"""Prompts: from the API's many forms to token ids.

Long inputs are rendered and encoded in a small thread pool, so that one long prompt never delays the streams of others;
short ones are done at once, because a thread costs more than they do. A text that cannot possibly fit the context is
refused before it is encoded.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, TypeVar

import orjson

from capstan_engine.server.errors import ApiError
from capstan_engine.server.requests import ChatMessage, CompletionBody, Conversation
from capstan_engine.server.sampling import ModelFacts, check_prompt
from capstan_engine.text import Message, Tokenizer

_INLINE_CHARACTERS: Final = 2048
_NUM_THREADS: Final = 2

T = TypeVar("T")


@dataclass(frozen=True)
class Prompt:
    """One prompt; `text` is what an echo shows."""

    text: str
    token_ids: list[int]


class Prompts:
    """Makes prompts for one model."""

    def __init__(self, tokenizer: Tokenizer, facts: ModelFacts) -> None:
        self._tokenizer = tokenizer
        self._facts = facts
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="tokenize")

    async def of_conversation(self, body: Conversation, *, add_special_tokens: bool) -> Prompt:
        """The prompt of a chat. Raises `RequestError` when the template refuses it, `ApiError` when there is none."""
        size = sum(_size(message) for message in body.messages)
        text = await self._beside(size, lambda: self._render(body))
        return await self.of_text(text, "messages", add_special_tokens=add_special_tokens)

    async def of_completion(self, body: CompletionBody) -> list[Prompt]:
        """The prompts of a completion request, in order."""
        given = body.prompt
        add_special_tokens = body.add_special_tokens is not False
        if isinstance(given, str):
            return [await self.of_text(given, "prompt", add_special_tokens=add_special_tokens)]
        if not given:
            raise ApiError.invalid("prompt", "'prompt' must contain at least one token.")
        if isinstance(given[0], int):
            # The union's branches are lists of one kind; pydantic has checked it.
            return [await self._of_tokens([t for t in given if isinstance(t, int)], echo=bool(body.echo))]
        # Many short ones take as long as one that is long.
        size = sum(len(each) for each in given if isinstance(each, str | list))
        return [
            await self.of_text(each, "prompt", add_special_tokens=add_special_tokens, batch_size=size)
            if isinstance(each, str)
            else await self._of_tokens(each if isinstance(each, list) else [], echo=bool(body.echo), batch_size=size)
            for each in given
        ]

    async def of_text(self, text: str, param: str, *, add_special_tokens: bool, batch_size: int = 0) -> Prompt:
        """`batch_size` is the length of all texts that it is one of. Raises `ApiError` for a text without tokens or far
        beyond the context.
        """
        fewest = len(text) // self._tokenizer.longest_token
        if fewest > self._facts.max_model_len:
            message = (
                f"This model's maximum context length is {self._facts.max_model_len} tokens (setting max_model_len). "
                f"However, the {param} has at least {fewest} tokens."
            )
            raise ApiError.invalid(param, message, code="context_length_exceeded")
        encode = self._tokenizer.encode
        size = max(batch_size, len(text))
        ids = await self._beside(size, lambda: encode(text, add_special_tokens=add_special_tokens))
        check_prompt(ids, self._facts, param)
        return Prompt(text, ids)

    async def decode(self, ids: list[int], *, batch_size: int = 0) -> str:
        return await self._beside(max(batch_size, len(ids)), lambda: self._tokenizer.decode(ids))

    async def _of_tokens(self, ids: list[int], *, echo: bool, batch_size: int = 0) -> Prompt:
        check_prompt(ids, self._facts, "prompt")
        return Prompt(await self.decode(ids, batch_size=batch_size) if echo else "", ids)

    async def _beside(self, size: int, work: Callable[[], T]) -> T:
        """Run `work` here when it is small, in the pool when it is not."""
        if size <= _INLINE_CHARACTERS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _render(self, body: Conversation) -> str:
        template = self._tokenizer.chat_template
        if template is None:
            message = "This model has no chat template; use /v1/completions."
            raise ApiError.invalid("messages", message, code="no_chat_template")
        continues = bool(body.continue_final_message)
        if continues and body.add_generation_prompt:
            message = "continue_final_message and add_generation_prompt exclude each other."
            raise ApiError.invalid("continue_final_message", message)
        return template.render(
            [_templated(message, parts=template.wants_parts) for message in body.messages],
            add_generation_prompt=not continues and body.add_generation_prompt is not False,
            continue_final_message=continues,
            variables=body.chat_template_kwargs,
        )


def _size(message: ChatMessage) -> int:
    if isinstance(message.content, str):
        return len(message.content)
    return sum(len(part.text) for part in message.content or ())


def _templated(message: ChatMessage, *, parts: bool) -> Message:
    """The message as templates expect it: content of one kind, arguments of tool calls as objects."""
    shown = message.model_dump(exclude_none=True)
    shown["content"] = _content(message, parts=parts)
    if message.tool_calls is not None:
        shown["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    return shown


def _content(message: ChatMessage, *, parts: bool) -> str | list[dict[str, str]] | None:
    content = message.content
    if content is None:
        # An assistant message that only calls tools; everybody else's silence is an empty text.
        return None if message.role == "assistant" else ""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if parts else content
    return [{"type": "text", "text": part.text} for part in content] if parts else "\n".join(p.text for p in content)


def _tool_call(call: dict[str, object]) -> dict[str, object]:
    """The API carries arguments as JSON text, templates print them as JSON: without this they would be quoted twice."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = orjson.loads(function["arguments"] or "{}")
    except orjson.JSONDecodeError:
        raise ApiError.invalid("messages", "The arguments of a tool call must be JSON.") from None
    return {**call, "function": {**function, "arguments": arguments}}


def num_tokens(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.token_ids) for prompt in prompts)
