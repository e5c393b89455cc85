"""Text from tokens that come one at a time, without ever showing half a character.

Two ways, by the kind of tokenizer. A byte-level vocabulary (GPT-2, Llama 3, Qwen) *is* bytes: each token's bytes go
through an incremental UTF-8 decoder, which is exact and needs no look back. Every other decoder (SentencePiece style
with its leading spaces and byte fallback) gives a token's text only in context: the last few tokens are decoded with
and without the new one, and the difference is the new text.
"""

import codecs
from collections.abc import Callable, Sequence
from typing import Final, Protocol

REPLACEMENT: Final = "\ufffd"
# A UTF-8 character has at most four bytes and a token at least one: beyond that the bytes are simply invalid.
_MAX_PENDING_TOKENS: Final = 4
# Tokens of the prompt that are enough context for the first new token.
_CONTEXT_TOKENS: Final = 5


class Detokenizer(Protocol):
    """One request's text. `push` gives the text that a token completes, `flush` the rest when no token follows."""

    def push(self, token_id: int) -> str: ...

    def flush(self) -> str: ...


class ByteLevelDetokenizer:
    """For vocabularies whose tokens are byte strings. `token_bytes` maps an id to its bytes, b"" to leave it out."""

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For any decoder. `decode` turns ids into text; ids in `hidden` leave no text; `context` is the prompt's end.

    `token_bytes`, where it is known, tells U+FFFD itself from an incomplete character: its bytes are whole.

    The rule of two moving offsets follows Hugging Face's text-generation-inference: text[prefix:read] is what has been
    shown, decoded again beside the new tokens so that both decodings share their context.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        hidden: frozenset[int] = frozenset(),
        context: Sequence[int] = (),
        token_bytes: Callable[[int], bytes] | None = None,
    ) -> None:
        self._decode = decode
        self._token_bytes = token_bytes
        self._hidden = hidden
        # The shown tokens that serve as context, their text, and the tokens whose text has not been shown yet.
        self._context = [token for token in context if token not in hidden][-_CONTEXT_TOKENS:]
        self._context_text = decode(self._context) if self._context else ""
        self._pending: list[int] = []
        # Tokens in a row after which the text ends in an incomplete character.
        self._num_unfinished = 0

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._pending.append(token_id)
        text = self._decode(self._context + self._pending)
        is_whole = not text.endswith(REPLACEMENT) or self._is_replacement_itself()
        self._num_unfinished = 0 if is_whole else self._num_unfinished + 1
        unfinished = 0 < self._num_unfinished < _MAX_PENDING_TOKENS
        if unfinished or len(text) <= len(self._context_text):
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode(self._context + self._pending)) if self._pending else ""

    def _is_replacement_itself(self) -> bool:
        if self._token_bytes is None:
            return False
        return b"".join(map(self._token_bytes, self._pending)) == REPLACEMENT.encode()

    def _show(self, text: str) -> str:
        new = text[len(self._context_text) :]
        self._context, self._pending, self._num_unfinished = self._pending, [], 0
        self._context_text = self._decode(self._context)
        return new
