"""Chat templates: a conversation to the prompt text that the model was trained on.

A template is part of the checkpoint, compiled once, and never comes from a request. It is still somebody else's
program: it runs in Jinja's immutable sandbox, and its output is bounded while it is being produced. The result equals
`transformers.PreTrainedTokenizer.apply_chat_template` byte for byte, because models notice a single wrong newline.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from capstan_engine.errors import ModelError, RequestError

Message = dict[str, Any]

MAX_PROMPT_CHARACTERS: Final = 16 << 20
# Ends in a space so that a template which trims its messages can be told from one which does not.
_CONTINUE_HERE: Final = "CAPSTAN_CONTINUES_HERE "
# Names under which reasoning text is passed; templates read the first, those of gpt-oss the second.
_REASONING_FIELDS: Final = ("reasoning_content", "thinking", "reasoning")
_PROBE: Final = "capstan probe"


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks assistant text for training; for a prompt it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance-level set

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment() -> ImmutableSandboxedEnvironment:
    # A prompt is not HTML: escaping would corrupt it.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
        extensions=[_GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class ChatTemplate:
    """One compiled template. `source` is its text, `wants_parts` whether it reads content as a list of parts."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self._variables = dict(special_tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            raise ModelError(f"chat template: {error}") from error
        self.wants_parts = not self._shows(_PROBE) and self._shows([{"type": "text", "text": _PROBE}])

    @classmethod
    def load(
        cls, model_dir: Path, tokenizer_config: Mapping[str, Any], special_tokens: Mapping[str, str]
    ) -> "ChatTemplate | None":
        """The checkpoint's template: `chat_template.jinja`, else the configuration's own or its list's `default`."""
        path = model_dir / "chat_template.jinja"
        declared = tokenizer_config.get("chat_template")
        if isinstance(declared, list):
            declared = {entry["name"]: entry["template"] for entry in declared}.get("default")
        source = path.read_text(encoding="utf-8") if path.is_file() else declared
        return None if source is None else cls(source, special_tokens)

    def render(
        self,
        messages: Iterable[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. `variables` are the request's `chat_template_kwargs`; they cannot replace the messages.

        With `continue_final_message` the prompt ends inside the last message, without whatever closes it.
        Raises `RequestError` when the template refuses the conversation or its output grows without bound.
        """
        messages = [_plain(message) for message in messages]
        if continue_final_message:
            messages[-1] = {**messages[-1], "content": _marked(messages[-1].get("content"))}
        text = self._run(messages, add_generation_prompt, variables or {})
        if not continue_final_message:
            return text
        before, found, after = text.rpartition(_CONTINUE_HERE.rstrip())
        if not found:
            message = "the chat template does not show the final message, so it cannot be continued"
            raise RequestError(message, param="continue_final_message")
        return before if after.startswith(" ") else before.rstrip()

    def _run(self, messages: list[Message], add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        context = {
            **self._variables,
            "tools": None,
            "documents": None,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        pieces: list[str] = []
        room = MAX_PROMPT_CHARACTERS
        try:
            for piece in self._template.generate(context):
                room -= len(piece)
                if room < 0:
                    raise RequestError("the chat template's output grows beyond 16 Mi characters", param="messages")
                pieces.append(piece)
        except RequestError:
            raise
        except jinja2.TemplateError as error:  # the template's own words, through raise_exception
            raise RequestError(
                f"the chat template refuses these messages: {error.message}", param="messages"
            ) from error
        except Exception as error:  # a foreign program on a client's data may fail in any way
            raise RequestError("the chat template cannot render these messages", param="messages") from error
        return "".join(pieces)

    def _shows(self, content: str | list[dict[str, str]]) -> bool:
        try:
            return _PROBE in self._run([{"role": "user", "content": content}], True, {})
        except RequestError:
            return False


def _plain(message: Message) -> Message:
    """The message without its null fields, since templates print them, and with reasoning under every known name."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in _REASONING_FIELDS if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _marked(content: Any) -> Any:
    """The content of the message to continue, with a mark at its end."""
    if isinstance(content, str):
        return content + _CONTINUE_HERE
    if isinstance(content, list) and content and "text" in content[-1]:
        return [*content[:-1], {**content[-1], "text": content[-1]["text"] + _CONTINUE_HERE}]
    raise RequestError("the final message has no text to continue", param="continue_final_message")
