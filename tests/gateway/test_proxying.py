"""What passes through the gateway, and how: unchanged, at once, and no longer than the client wants it."""

import asyncio
import io
import json
import socket

import pytest

from capstan_gateway import gateway


async def test_a_whole_answer_passes_unchanged_with_the_replica_and_the_request_id(door, start_replica):
    await door.put(await start_replica("r1"))
    async with door.chat(headers={"x-request-id": "my-id.1"}) as response:
        assert response.status == 200
        assert (await response.json())["choices"][0]["message"]["content"] == "abc"
        assert response.headers["x-capstan-replica"] == "r1"
        assert response.headers.getall("x-request-id") == ["my-id.1"]
        assert len(response.headers.getall("date")) == 1


async def test_a_stream_passes_unchanged(door, start_replica):
    await door.put(await start_replica("r1"))
    async with door.chat(stream=True) as response:
        assert response.content_type == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        events = (await response.read()).split(b"\n\n")
    assert [json.loads(e[6:])["choices"][0]["delta"].get("content") for e in events[1:4]] == ["a", "b", "c"]
    assert events[-2:] == [b"data: [DONE]", b""]


async def test_events_arrive_one_by_one_while_the_replica_still_writes(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    replica.gate.release()
    async with door.chat(stream=True) as response:
        for text in "abc":
            # The replica sends nothing more until this token has come through.
            async with asyncio.timeout(5):
                received = await response.content.readuntil(b"\n\n")
            assert received == scripts.token_event(text)
            replica.gate.release()
        assert b"[DONE]" in await response.read()


@pytest.mark.parametrize("bad_id", ["a b", "x" * 200, "é", ""])
async def test_a_request_id_that_could_do_harm_is_replaced(door, start_replica, bad_id):
    replica = await start_replica("r1")
    await door.put(replica)
    async with door.chat(headers={"x-request-id": bad_id}) as response:
        made = response.headers["x-request-id"]
    assert made != bad_id
    assert replica.received[0][1]["x-request-id"] == made


async def test_the_engine_learns_class_waiting_time_and_what_is_left_of_the_deadline(door, start_replica):
    replica = await start_replica("r1")
    await door.put(replica)
    forged = {"x-capstan-waited-ms": "999999", "x-capstan-deadline-ms": "5000", "x-slo-ttft-ms": "3"}
    async with door.chat(headers=forged | {"x-capstan-slo-class": "bulk", "accept-encoding": "gzip"}) as response:
        assert response.status == 200
    _, headers, _ = replica.received[0]
    assert headers["x-capstan-slo-class"] == "batch"
    assert 0 <= int(headers["x-capstan-waited-ms"]) < 5000
    assert 0 < int(headers["x-capstan-deadline-ms"]) <= 5000
    assert headers["x-slo-ttft-ms"] == "3"
    assert headers["accept-encoding"] == "identity"


async def test_a_model_alias_selects_the_class_and_becomes_the_served_name(door, start_replica):
    replica = await start_replica("r1")
    await door.put(replica)
    async with door.chat(model="tiny-batch", seed=2**60) as response:
        assert response.status == 200
    _, headers, body = replica.received[0]
    assert (headers["x-capstan-slo-class"], body["model"], body["seed"]) == ("batch", "tiny", 2**60)


async def test_a_prompt_of_several_megabytes_passes(door, start_replica):
    replica = await start_replica("r1")
    await door.put(replica)
    body = io.BytesIO(json.dumps({"prompt": "word " * 1_000_000}).encode())
    async with door.session.post(f"{door.url}/v1/completions", data=body) as response:
        assert response.status == 200
    assert len(replica.received[0][2]["prompt"]) == 5_000_000


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize"])
async def test_the_other_routes_reach_a_replica_under_their_own_path(door, start_replica, path):
    replica = await start_replica("r1")
    await door.put(replica)
    async with door.session.post(door.url + path, json={"prompt": "x"}) as response:
        assert response.status == 200
    assert replica.received[0][0] == path


async def test_errors_of_the_engine_reach_the_client_as_they_are(door, start_replica, scripts):
    await door.put(await start_replica("r1", scripts.status(400)))
    async with door.chat() as response:
        assert (response.status, (await response.json())["error"]["code"]) == (400, "from_r1")


@pytest.mark.parametrize("script", ["hang", "gated"])
async def test_a_client_that_leaves_ends_the_request_at_the_replica(door, start_replica, scripts, script):
    replica = await start_replica("r1", getattr(scripts, script))
    await door.put(replica)
    replica.gate.release()
    request = asyncio.create_task(_read_all(door, stream=True))
    await replica.arrived.wait()
    request.cancel()
    async with asyncio.timeout(5):
        await replica.cancelled.wait()
    state = await door.until(lambda s: s["open"] == 0)
    assert state["in_flight"] == 0
    assert (await door.metrics())["responses_total{outcome=cancelled,slo_class=interactive}"] == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no such limit")
def test_a_request_on_its_way_to_a_machine_that_is_gone_is_given_up_as_soon_as_a_stream_from_it():
    """With a peer that vanishes (its address answered by nobody) both take 30 s; without the limit, 15 minutes."""
    with gateway._socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 0))) as sock:
        silence_s = sum(sock.getsockopt(socket.IPPROTO_TCP, option) * times
                        for option, times in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 3)))  # fmt: skip
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 1000 * silence_s


async def test_a_conversation_returns_to_its_replica_and_new_ones_go_to_the_least_loaded(door, start_replica, scripts):
    replicas = [await start_replica(name) for name in ("r1", "r2", "r3")]
    await door.put(*replicas)
    prompt = "once upon a time " * 40
    async with door.chat(prompt) as response:
        home = response.headers["x-capstan-replica"]
    for turn in range(5):
        async with door.chat(prompt + " and then" * turn) as response:
            assert response.headers["x-capstan-replica"] == home
    assert (await door.state())["routed"]["prefix"] == 5


async def test_without_affinity_a_busy_replica_is_avoided_whatever_it_knows(start_gateway, start_replica, scripts):
    door = await start_gateway(prefix_affinity=False)
    replicas = {name: await start_replica(name, scripts.gated) for name in ("r1", "r2")}
    await door.put(*replicas.values())
    prompt = "once upon a time " * 40
    first = asyncio.create_task(_read_all(door, prompt=prompt, stream=True))
    await door.until(lambda s: s["in_flight"] == 1)
    second = asyncio.create_task(_read_all(door, prompt=prompt, stream=True))
    state = await door.until(lambda s: s["in_flight"] == 2)
    assert [row["in_flight"] for row in state["table"]["replicas"]] == [1, 1]
    assert state["routed"]["prefix"] == 0
    for replica in replicas.values():
        for _ in range(3):
            replica.gate.release()
    for body in await asyncio.gather(first, second):
        assert body.endswith(b"[DONE]\n\n")


async def test_prompt_tokens_are_outstanding_until_the_first_byte(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    request = asyncio.create_task(_read_all(door, prompt="word " * 400, stream=True))
    (row,) = (await door.until(lambda s: s["in_flight"] == 1))["table"]["replicas"]
    assert 450 < row["prefill_tokens"] < 550
    replica.gate.release()
    (row,) = (await door.until(lambda s: s["table"]["replicas"][0]["prefill_tokens"] == 0))["table"]["replicas"]
    assert row["in_flight"] == 1
    for _ in range(2):
        replica.gate.release()
    assert (await request).endswith(b"[DONE]\n\n")


async def test_five_hundred_streams_at_once_all_arrive_whole(door, start_replica):
    await door.put(*[await start_replica(f"r{i}") for i in range(3)])
    bodies = await asyncio.gather(*(_read_all(door, prompt=f"{i}", stream=True) for i in range(500)))
    assert sum(body.endswith(b"data: [DONE]\n\n") and body.count(b"content") == 4 for body in bodies) == 500
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=completed,slo_class=interactive}"] == 500
    assert (await door.state())["open"] == 0


async def _read_all(door, **arguments):
    async with door.chat(**arguments) as response:
        return await response.read()
