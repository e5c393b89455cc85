"""The checkpoint's tokenizer: ids from text, text from ids, and the special tokens by name.

Wraps the `tokenizers` library and reads `tokenizer.json`, `tokenizer_config.json` and `special_tokens_map.json`; never
runs code from the checkpoint. Does not know what the ids are for. Encoding goes through `encode_batch_fast`, which
releases the interpreter lock, so a worker thread can encode a long prompt beside a busy event loop.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

import orjson
from tokenizers import Tokenizer as _Tokenizer

from capstan_engine.errors import ModelError
from capstan_engine.text.chat_template import ChatTemplate
from capstan_engine.text.detokenizer import ByteLevelDetokenizer, Detokenizer, WindowDetokenizer

_BYTE_TOKEN: Final = re.compile("<0x([0-9A-Fa-f]{2})>")
_NAMED_TOKENS: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte (openai/gpt-2, encoder.py), inverted: character to byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTE_OF: Final = _byte_alphabet()


class Tokenizer:
    """Text to ids and back. `special_tokens` maps names such as `eos_token` to their text."""

    def __init__(
        self, tokenizer: _Tokenizer, special_tokens: dict[str, str], chat_template: ChatTemplate | None = None
    ) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.special_tokens = special_tokens
        self.chat_template = chat_template
        self.special_ids = frozenset(i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special)
        self.eos_token_id: int | None = tokenizer.token_to_id(special_tokens.get("eos_token", ""))
        self.longest_token: Final = max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)
        decoder = tokenizer.decoder
        self._byte_level = decoder is not None and json.loads(decoder.__getstate__()).get("type") == "ByteLevel"
        self._bytes: dict[int, bytes] = {}

    @classmethod
    def load(cls, model_dir: Path) -> "Tokenizer":
        """The tokenizer of a checkpoint directory. Raises `ModelError` naming the file that is missing or broken."""
        path = model_dir / "tokenizer.json"
        if not path.is_file():
            raise ModelError(f"{path}: not found; the model directory needs a fast tokenizer in one tokenizer.json")
        try:
            tokenizer = _Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every defect of the file
            raise ModelError(f"{path}: not a readable tokenizer: {error}") from error
        config = read_json(model_dir / "tokenizer_config.json")
        special_tokens = _special_tokens(config, read_json(model_dir / "special_tokens_map.json"))
        return cls(tokenizer, special_tokens, ChatTemplate.load(model_dir, config, special_tokens))

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; of a decoder that is not byte-level, its byte or its text alone."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """A token alone as text; an incomplete character shows as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def detokenizer(self, *, skip_special_tokens: bool, context: list[int]) -> Detokenizer:
        """Incremental text of the tokens that follow the prompt `context`."""
        hidden = self.special_ids if skip_special_tokens else frozenset()
        if not self._byte_level:
            return WindowDetokenizer(self.decode, hidden, context, self.token_bytes)
        if not hidden:
            return ByteLevelDetokenizer(self.token_bytes)
        return ByteLevelDetokenizer(lambda token_id: b"" if token_id in hidden else self.token_bytes(token_id))

    def _find_bytes(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None:  # a row of the model's vocabulary that the tokenizer does not use
            return b""
        if not self._byte_level:
            text, byte = self.decode([token_id]), _BYTE_TOKEN.fullmatch(token)
            # A decoder without byte fallback takes the name of a byte for text.
            return bytes.fromhex(byte[1]) if byte and text != token else text.encode()
        try:
            return bytes(_BYTE_OF[character] for character in token)
        except KeyError:  # an added token with characters outside the byte alphabet stands for itself
            return token.encode()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from the checkpoint; {} when there is no such file. Raises `ModelError` for a broken one."""
    try:
        value = orjson.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, orjson.JSONDecodeError) as error:
        raise ModelError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object")
    return value


def _special_tokens(*sources: dict[str, Any]) -> dict[str, str]:
    """Named special tokens; the earlier source wins. An entry is a string or an object with `content`."""
    found: dict[str, str] = {}
    for source in sources:
        for name in _NAMED_TOKENS:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found.setdefault(name, text)
    return found
