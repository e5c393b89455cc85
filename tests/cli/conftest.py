"""A small OpenAI-compatible server that ends streams in every way that a server can, and a scripted run as frames."""

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web

from capstan_api.limits import BatchLimits, Envelope
from capstan_api.status import DecisionStatus
from capstan_api.v1alpha1 import parse
from capstan_cli.frames import ClassFrame, Frame, ReplicaFrame


class FakeServer:
    """`behaviour(number)` names how the number-th completion ends; tokens are words, the template adds three."""

    template_tokens = 3

    def __init__(self):
        self.behaviour = lambda number: "complete"
        self.bodies = []
        self.headers = []
        self.release = asyncio.Event()
        self.release.set()
        self.asked = asyncio.Event()
        self.changed = asyncio.Condition()
        self.open = 0
        self.most_open = 0
        self.max_model_len = 4096
        self.base = ""

    def app(self):
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/v1/chat/completions", self.complete)
        app.router.add_post("/v1/completions", self.complete)
        return app

    async def models(self, _):
        return web.json_response({"data": [{"id": "fake", "max_model_len": self.max_model_len}]})

    async def tokenize(self, request):
        return web.json_response({"count": self.count(await request.json())})

    def count(self, body):
        if "messages" in body:
            return sum(len(m["content"].split()) for m in body["messages"]) + self.template_tokens
        return len(body["prompt"].split())

    async def complete(self, request):
        body = await request.json()
        number = len(self.bodies)
        self.bodies.append(body)
        self.asked.set()
        self.headers.append(request.headers)
        how = self.behaviour(number)
        await self.count_open(+1)
        try:
            return await self.answer(request, body, how)
        finally:
            await self.count_open(-1)

    async def count_open(self, change):
        async with self.changed:
            self.open += change
            self.most_open = max(self.most_open, self.open)
            self.changed.notify_all()

    async def until_open(self, number):
        """Wait until exactly `number` completions are open."""
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(lambda: self.open == number)

    async def answer(self, request, body, how):
        await self.release.wait()
        if how in {"429", "503", "500"}:
            error = {"error": {"message": "no", "type": "server_error", "code": f"code_{how}"}}
            return web.json_response(error, status=int(how))
        if how == "reset":
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "x-capstan-replica": "r-0"})
        await response.prepare(request)
        tokens = body["max_tokens"] - (1 if how == "short" else 0)
        for index in range(tokens):
            await self.event(response, {"choices": [{"delta": {"content": f"w{index} "}, "text": f"w{index} "}]})
            if index == 1 and how == "drop":
                request.transport.abort()
                return response
            if index == 1 and how == "error event":
                await self.event(response, {"error": {"message": "gone", "code": "replica_lost"}})
                await response.write(b"data: [DONE]\n\n")
                return response
        if how != "no finish":
            await self.event(response, {"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": self.count(body), "completion_tokens": tokens}
        await self.event(response, {"choices": [], "usage": usage})
        if how != "no done":
            await response.write(b"data: [DONE]\n\n")
        return response

    async def event(self, response, event):
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@asynccontextmanager
async def served(fake):
    runner = web.AppRunner(fake.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.base = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield fake
    finally:
        await runner.cleanup()


@pytest.fixture
async def fake():
    async with served(FakeServer()) as server:
        yield server


START = 1_790_000_000.0


def moment(second):
    return datetime.fromtimestamp(START + second, UTC).isoformat().replace("+00:00", "Z")


def decision(second, action, message):
    return DecisionStatus(time=moment(second), action=action, reason="Because", message=message, inputs_hash="0")


LOWERED = decision(20, "SetLimits", "TPOT p95 61 ms > 50 ms: token budget 512 → 384")
SCALED_UP = decision(30, "ScaleUp", "TTFT p95 812 ms > 800 ms with 14 requests waiting: 1 → 2 replicas")
SCALED_DOWN = decision(80, "ScaleDown", "one replica carries 0.6 requests/s at 41 %: 2 → 1 replicas")


def make_frame(second, **changes):
    """One second of a run in which limits fall at 20, a second replica is wanted at 30, ready at 40, gone at 90."""
    ready = 2 if 40 <= second < 90 else 1
    done = [d for d in (SCALED_DOWN, SCALED_UP, LOWERED) if d.time <= moment(second)]
    replicas = [ReplicaFrame("quickstart-abc-0", "Ready", second + 9.0, 0, 5, 3, 0.34)]
    if 30 <= second < 90:
        replicas.append(
            ReplicaFrame("quickstart-abc-1", "Ready", second - 30, 1, 2, 0, 0.1)
            if ready == 2
            else ReplicaFrame("quickstart-abc-1", "Starting", second - 30.0)
        )
    values = {
        "at": START + second,
        "name": "quickstart",
        "model": "capstan-tiny",
        "classes": (
            ClassFrame("interactive", 95, 612, 1000, 66, 60, 97.8, 120),
            ClassFrame("batch", 95, None, 15_000, None, None, None, 0),
        ),
        "replicas": tuple(replicas),
        "replicas_ready": ready,
        "replicas_wanted": 2 if 30 <= second < 80 else 1,
        "limits": BatchLimits(max_sequences=16, max_batched_tokens=512 if second < 20 else 384),
        "envelope": Envelope(min_sequences=4, max_sequences=32, min_batched_tokens=64, max_batched_tokens=512),
        "requests_per_s": 1.5 + second / 100,
        "output_tokens_per_s": 210.0,
        "decisions": tuple(done),
        "now": decision(second, "Hold", "One replica is enough: 60 % of its capacity is used"),
        "endpoint": "http://127.0.0.1:8000",
    }
    return Frame(**{**values, **changes})


@pytest.fixture
def at_second():
    """Builds the frame of a second of a scripted run."""
    return make_frame


@pytest.fixture
def script():
    """The whole scripted run, a frame a second from 5 seconds before the load to 120 after."""
    return [make_frame(second) for second in range(-5, 120)]


@pytest.fixture
def deployment():
    return parse(
        {
            "apiVersion": "capstan.dev/v1alpha1",
            "kind": "InferenceDeployment",
            "metadata": {"name": "quickstart"},
            "spec": {
                "model": {"source": {"uri": "bundled://capstan-tiny"}},
                "slos": [
                    {
                        "name": "interactive",
                        "ttft": {"thresholdMilliseconds": 1000},
                        "tpot": {"thresholdMilliseconds": 60},
                    },
                    {"name": "batch", "ttft": {"thresholdMilliseconds": 15_000}},
                ],
            },
        }
    )


@pytest.fixture
def fake_server_class():
    return FakeServer


@pytest.fixture
def serve():
    return served
