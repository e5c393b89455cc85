"""/tokenize, /detokenize and /tokenizer_info: the tokenizer as a service, for evaluation and benchmark clients."""

from typing import Any

import orjson

from capstan_engine.server.call import ModelNames
from capstan_engine.server.front_end import Model
from capstan_engine.server.requests import DetokenizeBody, TokenizeBody, TokenizeChatBody, parse
from capstan_engine.server.sampling import check_prompt


async def tokenize(names: ModelNames, model: Model, raw: bytes) -> dict[str, Any]:
    """Token ids of a prompt or of a conversation, whichever the body has."""
    body = parse(TokenizeChatBody, raw) if _has_messages(raw) else parse(TokenizeBody, raw)
    names.check(body.model)
    if isinstance(body, TokenizeChatBody):
        prompt = await model.prompts.of_conversation(body, add_special_tokens=bool(body.add_special_tokens))
    else:
        add_special_tokens = body.add_special_tokens is not False
        prompt = await model.prompts.of_text(body.prompt, "prompt", add_special_tokens=add_special_tokens)
    answer = {
        "count": len(prompt.token_ids),
        "max_model_len": model.facts.max_model_len,
        "tokens": prompt.token_ids,
        "token_strs": None,
    }
    if body.return_token_strs:
        answer["token_strs"] = [model.tokenizer.token_text(token) for token in prompt.token_ids]
    return answer


async def detokenize(names: ModelNames, model: Model, body: DetokenizeBody) -> dict[str, str]:
    """The text of token ids, special tokens included."""
    names.check(body.model)
    if body.tokens:
        check_prompt(body.tokens, model.facts, "tokens")
    return {"prompt": await model.prompts.decode(body.tokens)}


def info(model: Model) -> dict[str, Any]:
    """What a remote user of this tokenizer must know of it."""
    template = model.tokenizer.chat_template
    absent = dict.fromkeys(("bos_token", "eos_token", "pad_token"))
    return {
        **absent,
        **model.tokenizer.special_tokens,
        "chat_template": None if template is None else template.source,
        "vocab_size": len(model.tokenizer),
        "model_max_length": model.facts.max_model_len,
    }


def _has_messages(raw: bytes) -> bool:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return False
    return isinstance(body, dict) and "messages" in body
