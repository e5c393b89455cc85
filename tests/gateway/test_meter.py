"""Reading a stream as it passes."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_gateway.meter import StreamMeter


def chunk(**choice):
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


STREAM = b"".join([
    chunk(delta={"role": "assistant", "content": ""}),
    b": a comment\n\n",
    *(chunk(delta={"content": text}) for text in ("a", "b\n\n", "ü")),
    chunk(delta={}, finish_reason="stop"),
    b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}\n\n',
    b"data: [DONE]\n\n",
])  # fmt: skip


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_what_goes_on_is_the_stream_itself_however_it_is_cut(cuts):
    edges = sorted({0, *cuts, len(STREAM)})
    meter = StreamMeter()
    passed = [meter.feed(STREAM[a:b], float(b)) for a, b in pairwise(edges)]
    assert b"".join(passed) == STREAM
    assert all(part == b"" or part.endswith(b"\n\n") for part in passed)
    assert (meter.num_output_tokens, meter.usage.prompt_tokens, meter.done, meter.failed) == (4, 5, True, False)


def test_half_an_event_is_held_back_and_a_whole_one_is_not():
    meter = StreamMeter()
    first, second = chunk(text="a"), chunk(text="b")
    assert meter.feed(first + second[:7], 0.0) == first
    assert meter.feed(second[7:], 0.0) == second


def test_the_role_is_no_token():
    meter = StreamMeter()
    meter.feed(chunk(delta={"role": "assistant", "content": ""}), 1.0)
    assert meter.first_token is None
    meter.feed(chunk(delta={"content": "a"}), 2.0)
    assert meter.first_token == 2.0


@pytest.mark.parametrize("field", ["content", "reasoning", "tool_calls"])
def test_every_kind_of_output_counts_as_tokens(field):
    meter = StreamMeter()
    meter.feed(chunk(delta={field: ["x"]}), 1.0)
    assert meter.num_output_tokens == 1


def test_tpot_is_the_mean_gap_between_tokens():
    meter = StreamMeter()
    for time in (1.0, 2.0, 4.0):
        meter.feed(chunk(text="x"), time)
    assert meter.tpot_s == 1.5


def test_tpot_uses_the_reported_number_of_tokens_when_events_carry_several():
    meter = StreamMeter()
    meter.feed(chunk(text="ab"), 1.0)
    meter.feed(chunk(text="cde"), 3.0)
    meter.feed(b'data: {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 5}}\n\n', 3.0)
    assert meter.tpot_s == 0.5


def test_one_token_has_no_tpot():
    meter = StreamMeter()
    meter.feed(chunk(text="a"), 1.0)
    assert meter.tpot_s is None


def test_parallel_choices_are_measured_each_for_itself():
    meter = StreamMeter()
    for time in (0.0, 1.0, 2.0):
        for index in (0, 1):
            meter.feed(b"data: " + json.dumps({"choices": [{"index": index, "text": "x"}]}).encode() + b"\n\n", time)
    assert meter.tpot_s == 1.0


def test_an_error_event_marks_the_stream_as_failed():
    meter = StreamMeter()
    meter.feed(b'data: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n', 0.0)
    assert meter.failed
    assert meter.done


@given(st.binary(max_size=300))
def test_no_bytes_whatever_upset_it(noise):
    meter = StreamMeter()
    assert meter.feed(noise + b"\n\n", 0.0) == noise + b"\n\n"
