"""Log probabilities in the words of the API: token names, alternatives in order, prompt positions.

The engine gives ids and floats (`TokenLogprobs`); the floats are passed on untouched, because evaluation harnesses
compare them for equality.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from capstan_engine.messages import TokenLogprobs
from capstan_engine.text import Tokenizer

# JSON has no infinity; OpenAI's API has this number for "practically impossible".
_IMPOSSIBLE: Final = -9999.0


class TokenNames:
    """How tokens are called in one answer: by their text, or as `token_id:N` when the request prefers that."""

    def __init__(self, tokenizer: Tokenizer, *, as_ids: bool) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def name(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else self._tokenizer.token_text(token_id)

    def text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id)

    def bytes(self, token_id: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token_id))

    def most_likely(self, position: TokenLogprobs, num: int) -> list[tuple[int, float]]:
        """The `num` most likely tokens and their log probabilities, in falling order."""
        by_id = dict(zip(position.ids, position.logprobs, strict=True))
        return sorted(((i, finite(p)) for i, p in by_id.items()), key=lambda each: -each[1])[:num]


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _IMPOSSIBLE


def prompt_logprobs(positions: Sequence[TokenLogprobs | None], tokens: TokenNames) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per position, token id to log probability, rank and text; null for the first."""
    return [None if position is None else _by_id(position, tokens) for position in positions]


def _by_id(position: TokenLogprobs, tokens: TokenNames) -> dict[str, Any]:
    first = position.ids[0]
    entries = {
        str(first): {
            "logprob": finite(position.logprobs[0]),
            "rank": position.rank,
            "decoded_token": tokens.text(first),
        }
    }
    others = [i for i in position.ids[1:] if i != first]
    logprob_of = dict(zip(position.ids, position.logprobs, strict=True))
    # The others are the most likely ones in order, so their ranks are their places, the token itself left out or not.
    rank = 0
    for token in others:
        rank += 1 + (rank + 1 == position.rank)
        entries[str(token)] = {"logprob": finite(logprob_of[token]), "rank": rank, "decoded_token": tokens.text(token)}
    return entries
