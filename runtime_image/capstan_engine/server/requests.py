"""What clients may ask for: the bodies of the API as strict, bounded models.

One set of sampling fields serves every route, so that no route can forget a bound. Nothing is coerced: `true` is no
number and "0.5" is no float. Fields that are unknown are ignored; fields that are known and would change the answer,
but are not implemented, are refused by name (`UNSUPPORTED`). What needs the model (vocabulary, context) is checked in
`sampling`.
"""

import logging
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capstan_engine.server.errors import ApiError

logger = logging.getLogger(__name__)

MAX_CHOICES: Final = 16
MAX_PROMPTS: Final = 256
MAX_SEQUENCES: Final = 1024
_MAX_INT: Final = 2**31 - 1

TokenId = Annotated[int, Field(ge=0, le=_MAX_INT)]
Tokens = Annotated[int, Field(ge=1, le=_MAX_INT)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
LogitBias = Annotated[float, Field(ge=-100, le=100)]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    model: str | None = Field(default=None, max_length=512, description="A served model name; the first when absent.")


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(Body):
    """What chat and completions have in common. A field that is null counts as absent."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    min_tokens: int | None = Field(default=None, ge=0, le=_MAX_INT)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=_MAX_INT, description="0 and -1 keep all tokens.")
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, LogitBias] | None = Field(default=None, max_length=1024)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    stop_token_ids: list[TokenId] | None = Field(default=None, max_length=256)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = Field(default=None, ge=0, le=0, description="Only 0: the SLO class decides.")
    user: str | None = Field(default=None, max_length=1024)

    @property
    def num_choices(self) -> int:
        return self.n or 1

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(max_length=4096, fail_fast=True)] | None = None
    name: str | None = Field(default=None, max_length=256)
    tool_calls: list[dict[str, Any]] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = Field(default=None, max_length=256)
    reasoning: str | None = None
    reasoning_content: str | None = None


class Conversation(Body):
    """Messages and how the template shows them; shared by chat and /tokenize."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=4096)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, max_length=64)


class ChatBody(Conversation, GenerationBody):
    """POST /v1/chat/completions."""

    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives per output token; None for no logprobs."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def wanted_tokens(self) -> int | None:
        """The output's greatest length; None for what the context leaves."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


Prompt = Annotated[list[TokenId], Field(fail_fast=True)]


class CompletionBody(GenerationBody):
    """POST /v1/completions."""

    prompt: (
        str
        | Prompt
        | Annotated[list[str], Field(max_length=MAX_PROMPTS, fail_fast=True)]
        | Annotated[list[Prompt], Field(max_length=MAX_PROMPTS, fail_fast=True)]
    )
    max_tokens: int | None = Field(default=16, ge=0, le=_MAX_INT, description="Null for what the context leaves.")
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def wanted_tokens(self) -> int | None:
        return self.max_tokens


class TokenizeBody(Body):
    """POST /tokenize with a prompt."""

    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatBody(Conversation):
    """POST /tokenize with messages."""

    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


def _other_than(*accepted: object) -> Callable[[object], bool]:
    return lambda value: value not in accepted


def _is_set(value: object) -> bool:
    return bool(value)


def _wants_json(value: object) -> bool:
    return not (isinstance(value, dict) and value.get("type") == "text")


# Name of a known field to the test that tells an unsupported value of it. Null is always accepted.
UNSUPPORTED: Final[dict[str, Callable[[object], bool]]] = {
    "tool_choice": _other_than("none"),
    "functions": _is_set,
    "function_call": _other_than("none"),
    "response_format": _wants_json,
    "structured_outputs": _is_set,
    "guided_json": _is_set,
    "guided_regex": _is_set,
    "guided_choice": _is_set,
    "guided_grammar": _is_set,
    "modalities": _other_than(["text"]),
    "audio": _is_set,
    "suffix": _is_set,
    "echo": _is_set,
    "best_of": _other_than(1),
    "use_beam_search": _is_set,
    "length_penalty": _other_than(1, 1.0),
    "prompt_embeds": _is_set,
    "chat_template": _is_set,
    "documents": _is_set,
    "bad_words": _is_set,
    "allowed_token_ids": _is_set,
    "truncate_prompt_tokens": _is_set,
    "logits_processors": _is_set,
    "web_search_options": _is_set,
}
# Fields without influence on the answer; they are no news to the log.
_HARMLESS: Final = frozenset(
    {
        "kv_transfer_params",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "reasoning_effort",
        "request_id",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "tools",
        "verbosity",
    }
)

B = TypeVar("B", bound=Body)


# Names of ignored fields that have been logged once; bounded, because clients choose them.
_noted: set[str] = set()
_MAX_NOTED: Final = 256


def parse(kind: type[B], raw: bytes) -> B:
    """Bytes of a body to a validated model. Raises `ApiError` 400 naming the field."""
    try:
        # orjson refuses NaN, infinities, numbers beyond a double, broken surrogates and nesting beyond 1024.
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise ApiError.invalid(None, f"The body is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise ApiError.invalid(None, "The body must be a JSON object.")
    _refuse_unsupported(kind, body)
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise ApiError.from_validation(error, body) from None


def _refuse_unsupported(kind: type[Body], body: dict[str, Any]) -> None:
    if body.get("tools") and body.get("tool_choice") is None:
        raise ApiError.invalid(
            "tools", "'tools' is supported only with tool_choice \"none\".", code="unsupported_parameter"
        )
    for name in body.keys() - kind.model_fields.keys():
        refuses = UNSUPPORTED.get(name)
        if refuses is not None and body[name] is not None and refuses(body[name]):
            raise ApiError.invalid(name, f"'{name}' with this value is not supported.", code="unsupported_parameter")
        if refuses is None and name not in _HARMLESS and name not in _noted and len(_noted) < _MAX_NOTED:
            _noted.add(name)
            logger.info("ignoring the unknown request field %.64r", name)
