"""Text that arrives token by token is the text of all tokens at once, and never half a character."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import MODEL
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models

from capstan_engine.text import Tokenizer
from capstan_engine.text.detokenizer import REPLACEMENT, ByteLevelDetokenizer, Detokenizer, WindowDetokenizer

TOKENIZER = Tokenizer.load(MODEL)
RAW = RawTokenizer.from_file(str(MODEL / "tokenizer.json"))


def sentencepiece_like() -> RawTokenizer:
    """Llama 2's kind: words with a leading mark, and bytes for what has no token of its own."""
    words = ["<unk>", "▁Hello", "▁world", "lo", "▁", "!"]
    vocab = {token: i for i, token in enumerate([*words, *(f"<0x{byte:02X}>" for byte in range(256))])}
    tokenizer = RawTokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


LLAMA = Tokenizer(sentencepiece_like(), {})
BYTE_0 = 6


def streamed(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40), st.booleans())
@settings(max_examples=300)
def test_byte_level_stream_equals_the_whole_for_any_tokens(ids: list[int], skip: bool) -> None:
    pieces = streamed(TOKENIZER.detokenizer(skip_special_tokens=skip, context=[]), ids)
    assert "".join(pieces) == RAW.decode(ids, skip_special_tokens=skip)


@given(st.text(max_size=60))
def test_byte_level_stream_never_shows_half_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    pieces = streamed(TOKENIZER.detokenizer(skip_special_tokens=False, context=[]), ids)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    if REPLACEMENT not in text:
        assert all(REPLACEMENT not in piece for piece in pieces)


def test_both_ways_agree_on_a_byte_level_vocabulary() -> None:
    ids = TOKENIZER.encode("naïve 日本語 😀 text\n\n  with spaces", add_special_tokens=False)
    by_window = streamed(WindowDetokenizer(TOKENIZER.decode), ids)
    by_bytes = streamed(ByteLevelDetokenizer(TOKENIZER.token_bytes), ids)
    assert "".join(by_window) == "".join(by_bytes) == TOKENIZER.decode(ids)


@example([[4], "😀"])
@example([REPLACEMENT, "\x80"])
@example(["é", REPLACEMENT, REPLACEMENT, "😀"])
@given(st.lists(st.one_of(st.sampled_from([[1], [2], [3], [4], [5]]), st.characters(codec="utf-8")), max_size=20))
def test_byte_fallback_stream_equals_the_whole_and_shows_whole_characters(parts: list[list[int] | str]) -> None:
    ids = [i for part in parts for i in (part if isinstance(part, list) else [BYTE_0 + b for b in part.encode()])]
    pieces = streamed(LLAMA.detokenizer(skip_special_tokens=False, context=[]), ids)
    assert "".join(pieces) == LLAMA.decode(ids)
    if REPLACEMENT not in "".join(part for part in parts if isinstance(part, str)):
        assert all(REPLACEMENT not in piece for piece in pieces)


def test_the_first_word_after_a_prompt_keeps_its_space() -> None:
    detokenizer = LLAMA.detokenizer(skip_special_tokens=False, context=[1])
    assert streamed(detokenizer, [2, 5]) == [" world", "!", ""]


def test_an_unfinished_character_at_the_end_is_shown_as_replacement() -> None:
    first_byte = BYTE_0 + "😀".encode()[0]
    assert streamed(LLAMA.detokenizer(skip_special_tokens=False, context=[]), [first_byte])[-1] == REPLACEMENT


def test_bytes_that_never_become_a_character_are_not_held_forever() -> None:
    detokenizer = LLAMA.detokenizer(skip_special_tokens=False, context=[])
    assert any(detokenizer.push(BYTE_0 + 0xFF) for _ in range(5))


def test_the_bytes_of_byte_fallback_are_told_as_they_are() -> None:
    assert b"".join(LLAMA.token_bytes(BYTE_0 + byte) for byte in "日".encode()) == "日".encode()
    assert LLAMA.token_bytes(5) == b"!"


@pytest.mark.parametrize("text", ["Hello", "日", "\n", " x"])
def test_token_bytes_join_to_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    assert b"".join(map(TOKENIZER.token_bytes, ids)).decode() == text
