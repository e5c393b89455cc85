"""Every wrong value of every field is a 400 that names the field, in OpenAI's shape."""

from time import monotonic
from typing import Any

import pytest
from scripted_client import ScriptedClient
from serving import Served, serving

from capstan_api.engine_args import SloClass

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
COMPLETION: dict[str, Any] = {"prompt": "x"}
HUGE = 10**30

NUMBERS: dict[str, list[Any]] = {
    "temperature": [-0.1, 2.1, "1", True, [], HUGE],
    "top_p": [0, 1.1, "1", True],
    "top_k": [-2, 1.5, "5", True, HUGE],
    "min_p": [-0.1, 1.1, "0"],
    "repetition_penalty": [0, -1, 11, "1"],
    "presence_penalty": [-2.1, 2.1, "0"],
    "frequency_penalty": [-2.1, 2.1, {}],
    "n": [0, 17, -1, 1.5, "1", True, HUGE],
    "min_tokens": [-1, HUGE, 5.5, "3"],
    "seed": [2**63, -(2**63) - 1, 0.5, "1", True],
    "stream": [1, "true", []],
    "ignore_eos": ["yes", 1],
    "prompt_logprobs": [-1, 21, True, "1"],
    "priority": [1, -1, "0"],
    "stop": ["", [""], ["x"] * 17, "x" * 257, 5, [5], {}],
    "stop_token_ids": [[-1], ["1"], [4096], 5, [1] * 257, [HUGE]],
    "logit_bias": [{"1": 101}, {"1": "x"}, {"x": 1}, {"4096": 1}, {"-1": 1}, [], {str(i): 0 for i in range(1025)}],
    "stream_options": [{"include_usage": True}, "x", {"include_usage": 1}],
    "user": [5, "x" * 1025],
    "model": [5, [], "x" * 513],
}
CHAT_ONLY: dict[str, list[Any]] = {
    "max_tokens": [0, -1, 1.5, "5", True, HUGE],
    "max_completion_tokens": [0, -1, "5", HUGE],
    "logprobs": [1, "true"],
    "top_logprobs": [-1, 21, True, "1", 5],
    "messages": [[], "x", {}, None, [5], [[]]],
    "continue_final_message": ["x", 1],
    "chat_template_kwargs": [[], "x"],
    "tools": [[{"type": "function", "function": {"name": "f"}}]],
    "tool_choice": ["auto", "required", {"type": "function"}],
    "functions": [[{"name": "f"}]],
    "function_call": ["auto"],
    "response_format": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {}}, "x", 5],
    "modalities": [["audio"]],
    "audio": [{"voice": "x"}],
    "chat_template": ["{{ 1 }}"],
    "documents": [[{}]],
    "structured_outputs": [{"json": {}}],
}
COMPLETION_ONLY: dict[str, list[Any]] = {
    "max_tokens": [-1, 1.5, "5", HUGE],
    "logprobs": [-1, 21, True, "1"],
    "prompt": [None, 5, {}, [], [[]], [""], [5, "x"], [4096], [-1], [[5, -1]], [0.5], "", ["x"] * 257, [[["x"]]]],
    "best_of": [0, 2, 17, "1"],
    "echo": [1, "x"],
    "suffix": ["tail"],
}


def cases(*tables: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={str(value)[:20]}")
        for table in tables
        for name, values in table.items()
        for value in values
    ]


def check(answer: Any, name: str) -> None:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] is not None
    assert error["param"].partition("[")[0].partition(".")[0] == name


@pytest.mark.parametrize(("name", "value"), cases(NUMBERS, CHAT_ONLY))
async def test_chat_names_the_wrong_field(served: Served, engine: ScriptedClient, name: str, value: Any) -> None:
    check(await served.http.post("/v1/chat/completions", json=CHAT | {name: value}), name)
    assert not engine.submitted


# With the token that begins a sequence even "" is a prompt, so none is added here.
@pytest.mark.parametrize(("name", "value"), cases(NUMBERS, COMPLETION_ONLY))
async def test_completion_names_the_wrong_field(served: Served, engine: ScriptedClient, name: str, value: Any) -> None:
    body = COMPLETION | {"add_special_tokens": False} | {name: value}
    check(await served.http.post("/v1/completions", json=body), name)
    assert not engine.submitted


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "wizard", "content": "x"}, "messages[0].role"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 5}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": [5]}, "messages[0].tool_calls[0]"),
    ],
)
async def test_the_way_to_a_wrong_part_of_a_message_is_named(served: Served, message: Any, param: str) -> None:
    answer = await served.http.post("/v1/chat/completions", json={"messages": [message]})
    assert answer.json()["error"]["param"] == param


async def test_the_developer_s_message_is_taken(served: Served) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "x"}]
    answer = await served.http.post("/v1/chat/completions", json={"messages": messages, "max_tokens": 1})
    assert answer.status_code == 200


async def test_the_template_s_refusal_is_a_400(served: Served) -> None:
    answer = await served.http.post("/v1/chat/completions", json={"messages": [{"role": "tool", "content": "x"}]})
    assert answer.status_code == 400
    assert "message role must be" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"max_tokens": 257}, "messages"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
async def test_fields_that_contradict_each_other(served: Served, fields: dict[str, Any], param: str) -> None:
    answer = await served.http.post("/v1/chat/completions", json=CHAT | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_context_overflow_names_both_numbers_and_the_setting(served: Served) -> None:
    answer = await served.http.post("/v1/completions", json={"prompt": [5] * 250, "max_tokens": 10})
    error = answer.json()["error"]
    assert error["code"] == "context_length_exceeded"
    for part in ("256", "260", "250", "max_model_len"):
        assert part in error["message"]


async def test_a_text_far_beyond_the_context_is_not_even_encoded(served: Served, engine: ScriptedClient) -> None:
    answer = await served.http.post("/v1/completions", json={"prompt": "x" * 2_000_000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    assert not engine.submitted


ACCEPTED = [
    {"tools": []},
    {"tools": [{"type": "function"}], "tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"unknown_field": 5, "metadata": {"a": "b"}, "store": False},
    {"stop": None, "n": None, "temperature": None, "stream_options": None, "max_tokens": None},
    {"temperature": 0, "top_k": -1, "top_p": 1, "presence_penalty": 2},
    {"modalities": ["text"], "parallel_tool_calls": False},
    {"seed": -1},
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
async def test_what_clients_send_by_habit_is_accepted(served: Served, fields: dict[str, Any]) -> None:
    answer = await served.http.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-capstan-slo-class", "gold"),
        ("x-capstan-deadline-ms", "-1"),
        ("x-capstan-deadline-ms", "soon"),
        ("x-capstan-deadline-ms", "9" * 9),
        ("x-capstan-waited-ms", "1.5"),
    ],
)
async def test_senseless_headers_are_named(served: Served, header: str, value: str) -> None:
    answer = await served.http.post("/v1/chat/completions", json=CHAT, headers={header: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, header)


async def test_unknown_slo_class_lists_the_known(served: Served) -> None:
    answer = await served.http.post("/v1/chat/completions", json=CHAT, headers={"x-capstan-slo-class": "gold"})
    assert "interactive, bulk" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "model", "slo_class", "priority"),
    [
        ({}, "tiny", "interactive", 10),
        ({"x-capstan-slo-class": "bulk"}, "tiny", "batch", 0),
        ({"x-capstan-slo-class": "batch"}, "tiny", "batch", 0),
        ({}, "tiny-fast", "interactive", 10),
        # A gateway that is newer or older than the engine has let it in.
        ({"x-capstan-slo-class": "gold", "x-capstan-waited-ms": "0"}, "tiny", "interactive", 10),
    ],
)
async def test_slo_class_comes_from_header_or_alias(
    served: Served, engine: ScriptedClient, headers: dict[str, str], model: str, slo_class: str, priority: int
) -> None:
    answer = await served.http.post("/v1/chat/completions", json=CHAT | {"model": model}, headers=headers)
    assert answer.json()["model"] == model
    assert (engine.submitted[0].slo_class, engine.submitted[0].priority) == (slo_class, priority)


async def test_deadline_and_waiting_reach_the_scheduler(served: Served, engine: ScriptedClient) -> None:
    headers = {"x-capstan-deadline-ms": "5000", "x-capstan-waited-ms": "2000"}
    await served.http.post("/v1/chat/completions", json=CHAT, headers=headers)
    submit = engine.submitted[0]
    assert submit.deadline is not None
    assert submit.deadline - submit.arrival_time == pytest.approx(7.0)
    # Late for the client, who has waited at the gateway too: due 28 s from now.
    assert submit.first_token_due == submit.arrival_time + 30
    assert 27 < submit.first_token_due - monotonic() <= 28


async def test_a_class_without_a_threshold_never_yields(engine: ScriptedClient) -> None:
    classes = (SloClass(name="patient"), SloClass(name="prompt", ttft_seconds=0.25, model_alias="tiny-fast"))
    async with serving(engine, slo_classes=classes) as served:
        for model in ("tiny", "tiny-fast"):
            answer = await served.http.post("/v1/chat/completions", json=CHAT | {"model": model, "n": 2})
            assert answer.status_code == 200, answer.text
    patient, prompt = engine.submitted[:2], engine.submitted[2:]
    assert [submit.first_token_due for submit in patient] == [None, None]
    assert [submit.first_token_due for submit in prompt] == [submit.arrival_time + 0.25 for submit in prompt]
