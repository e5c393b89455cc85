"""Random requests made from the served OpenAPI document never end in a server error, and the engine outlives them."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.schemas import BaseSchema
from serving import serving

from capstan_api.limits import Envelope
from capstan_engine.client import InProcessClient
from capstan_engine.engine import Engine
from capstan_engine.scheduler.scheduler import Scheduler
from fakes import FakeRunner

# Operations with something to vary.
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/v1/models/{model_id}", "GET"),
]
ENVELOPE = Envelope(min_sequences=1, max_sequences=64, min_batched_tokens=64, max_batched_tokens=512)


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """The address of a front end with the real scheduler, on an event loop of its own: the fuzzer is synchronous."""
    address: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        runner = FakeRunner(num_blocks=1024, block_size=16, vocab_size=4096)
        scheduler = Scheduler(
            num_blocks=1024, block_size=16, max_model_len=48, limits=ENVELOPE.top, max_queued_requests=4096
        )
        client = InProcessClient(Engine(scheduler, runner))
        async with serving(client, network=True, envelope=ENVELOPE, max_model_len=48) as served:
            address.append(served.url)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    assert started.wait(30)
    yield address[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    loop.close()


@pytest.fixture(scope="module")
def described(api: str) -> BaseSchema:
    return schemathesis.openapi.from_url(f"{api}/openapi.json")


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        *((*operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
        # Any text is a fitting model id, so that route has no wrong input to make.
        *((*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS if operation[1] == "POST"),
    ],
)
def test_no_request_ends_in_a_server_error(described: BaseSchema, path: str, method: str, mode: GenerationMode) -> None:
    operation = described[path][method]
    statuses: Counter[int] = Counter()
    declared = {*operation.definition.raw["responses"], "404", "405"}

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=40, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: schemathesis.Case) -> None:
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body.pop("model", None)  # a random name would only ever test the answer to unknown models
            for message in case.body.get("messages", ()):
                message["role"] = "user"  # which roles a model knows is its template's affair, tested elsewhere
        answer = case.call(timeout=30)
        statuses[answer.status_code] += 1
        assert str(answer.status_code) in declared - {"500", "503"}, answer.text
        if answer.status_code >= 400 and answer.request.method != "HEAD":
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    ask()
    if method == "POST":
        assert 200 in statuses or mode is GenerationMode.NEGATIVE, statuses


def test_every_described_route_is_tried(described: BaseSchema) -> None:
    paths = described.raw_schema["paths"]
    assert {(path, method.upper()) for path, methods in paths.items() for method in methods} == {
        *OPERATIONS,
        *(("/" + probe, "GET") for probe in ("livez", "startupz", "health", "ready", "readyz", "metrics", "version")),
        ("/v1/models", "GET"),
        ("/tokenizer_info", "GET"),
    }


def test_the_engine_has_outlived_it_and_holds_nothing(api: str) -> None:
    assert httpx.get(f"{api}/health").status_code == 200
    answer = httpx.post(f"{api}/v1/completions", json={"prompt": [5], "max_tokens": 3, "ignore_eos": True})
    assert answer.json()["usage"]["completion_tokens"] == 3
    page = httpx.get(f"{api}/metrics").text
    assert 'capstan_engine_kv_blocks{state="held"} 0.0' in page
    assert "capstan_engine_requests_running 0.0" in page
