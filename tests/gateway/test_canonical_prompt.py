"""What routing sees of a request's prompt."""

import struct

import pytest

from capstan_gateway.incoming import canonical_prompt
from capstan_gateway.routing import BLOCK_BYTES, MAX_BLOCKS


def test_tools_come_first_and_messages_in_their_order():
    document = {
        "tools": [{"type": "function"}],
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        ],
    }
    text, num_tokens = canonical_prompt(document)
    parts = [b'[{"type":"function"}]', b"system", b"be brief", b"user", b"hello", b"assistant", b'[{"id":"a"}]']
    assert text == b"\0".join(parts)
    assert num_tokens == len(text) // 4


def test_a_token_id_is_four_bytes_and_the_first_prompt_of_a_batch_decides():
    ids = [1, 70_000, 3]
    for prompt in (ids, [ids, [5]]):
        assert canonical_prompt({"prompt": prompt}) == (struct.pack("<3I", *ids), 3)


def test_more_token_ids_than_routing_compares_are_counted_and_not_written_down():
    text, num_tokens = canonical_prompt({"prompt": [7] * 100_000})
    assert len(text) == BLOCK_BYTES * MAX_BLOCKS
    assert num_tokens == 100_000


@pytest.mark.parametrize(
    "message",
    [{}, 5, {"role": "user", "content": "x"}, {"content": [{}] * 50}],
    ids=["empty", "none", "short", "parts"],
)
def test_more_messages_than_an_engine_takes_are_not_looked_at(message):
    """An 8 MiB body can hold millions, and every stream would wait while they are read."""
    assert canonical_prompt({"messages": [message] * 20_000}) == canonical_prompt({"messages": [message] * 100_000})
