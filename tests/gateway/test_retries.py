"""Trying another replica while nothing has reached the client, and never after."""

import asyncio
import json

import pytest


async def ask(door, **arguments):
    async with door.chat(**arguments) as response:
        return response.status, await response.read(), response.headers


def error_in(stream: bytes) -> dict:
    """The error of a stream that ends with one."""
    events = stream.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    return json.loads(events[-3].removeprefix(b"data: "))["error"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("failure", ["reset", "503", "429", "empty"])
async def test_another_replica_answers_when_the_first_one_does_not(door, start_replica, scripts, failure, stream):
    script = {"reset": scripts.reset, "503": scripts.status(503), "429": scripts.status(429),
              "empty": scripts.cut_after(clean=True)}[failure]  # fmt: skip
    bad = await start_replica("bad", script)
    await door.put(bad)
    # Alone, the bad one is certainly tried first; the good one joins while the request is on its way.
    good = await start_replica("good")
    both = [bad, good]
    await door.put(*both)
    answers = await asyncio.gather(*(ask(door, prompt=str(i), stream=stream) for i in range(8)))
    assert {status for status, _, _ in answers} == {200}
    assert {headers["x-capstan-replica"] for _, _, headers in answers} == {"good"}
    assert bad.received
    retries = {key: value for key, value in (await door.metrics()).items() if key.startswith("retries_total")}
    assert sum(retries.values()) == len(bad.received)


async def test_a_replica_that_refuses_connections_is_passed_over_and_then_put_aside(door, start_replica, unused_port):
    gone = await start_replica("gone")
    gone.url = f"http://127.0.0.1:{unused_port}"
    await door.put(gone, await start_replica("good"))
    for i in range(20):
        status, _, headers = await ask(door, prompt=str(i))
        assert (status, headers["x-capstan-replica"]) == (200, "good")
    # Once tried, it is left alone for a while: of twenty requests few can have met it.
    assert (await door.metrics()).get("retries_total{reason=connect}", 0) <= 3


async def test_a_whole_answer_that_breaks_off_is_asked_for_again(door, start_replica, scripts):
    bad = await start_replica("bad", scripts.cut_whole)
    await door.put(bad, await start_replica("good"))
    answers = await asyncio.gather(*(ask(door, prompt=str(i)) for i in range(8)))
    assert all(json.loads(body)["choices"] for _, body, _ in answers)
    assert bad.received


@pytest.mark.parametrize("clean", [True, False])
async def test_a_stream_cut_in_the_middle_ends_with_an_error_and_is_not_repeated(door, start_replica, scripts, clean):
    # The second event is incomplete: the client must not see half of it.
    sent = scripts.token_event("a"), scripts.token_event("b")[:10]
    bad = await start_replica("bad", scripts.cut_after(*sent, clean=clean))
    other = await start_replica("other")
    await door.put(bad)
    async with door.chat(stream=True) as response:
        assert await response.content.readuntil(b"\n\n") == sent[0]
        await door.put(bad, other)
        bad.gate.release()
        rest = await response.read()
    error = error_in(rest)
    assert (error["type"], error["code"]) == ("server_error", "replica_lost")
    assert rest.startswith(b'data: {"error"')
    assert other.received == []
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=truncated,slo_class=interactive}"] == 1
    assert metrics["slo_requests_total{slo_class=interactive}"] == 1
    assert metrics["slo_good_requests_total{objective=all,slo_class=interactive}"] == 0


async def test_a_connection_lost_behind_the_end_marker_has_cost_nothing(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.cut_after(scripts.token_event("a"), b"data: [DONE]\n\n"))
    await door.put(replica)
    async with door.chat(stream=True) as response:
        await response.content.readuntil(b"[DONE]\n\n")
        replica.gate.release()
        assert await response.read() == b""
    assert (await door.metrics())["responses_total{outcome=completed,slo_class=interactive}"] == 1


async def test_when_every_replica_is_busy_the_client_is_told_with_their_retry_after(door, start_replica, scripts):
    busy = [await start_replica(f"r{i}", scripts.status(429, retry_after="7")) for i in range(3)]
    await door.put(*busy)
    status, _, headers = await ask(door)
    assert (status, headers["retry-after"]) == (429, "7")
    assert [len(replica.received) for replica in busy] == [1, 1, 1]
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=rejected,slo_class=interactive}"] == 1
    assert metrics["slo_requests_total{slo_class=interactive}"] == 1


async def test_a_request_that_several_replicas_died_of_is_not_given_to_the_next(door, start_replica, scripts):
    replicas = [await start_replica(f"r{i}", scripts.reset) for i in range(5)]
    await door.put(*replicas)
    status, body, _ = await ask(door)
    assert (status, json.loads(body)["error"]["code"]) == (502, "replica_lost")
    assert sum(len(replica.received) for replica in replicas) == 3


async def test_a_request_that_engines_died_of_is_not_given_to_the_next_though_their_front_ends_lived_to_say_so(
    door, start_replica, scripts
):
    replicas = [await start_replica(f"r{i}", scripts.status(503, code="engine_dead")) for i in range(5)]
    await door.put(*replicas)
    status, body, _ = await ask(door)
    assert (status, json.loads(body)["error"]["code"]) == (502, "replica_lost")
    assert sum(len(replica.received) for replica in replicas) == 3


async def test_a_replica_that_is_loading_is_tried_again_until_it_serves(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.status(503))
    await door.put(replica)
    request = asyncio.create_task(ask(door))
    await replica.arrived.wait()
    replica.script = scripts.answer
    status, _, _ = await request
    assert status == 200
    assert (await door.metrics())["retries_total{reason=unavailable}"] == 1


async def test_an_engine_error_before_the_first_token_is_not_repeated(door, start_replica, scripts):
    replicas = [await start_replica(f"r{i}", scripts.status(500)) for i in range(2)]
    await door.put(*replicas)
    status, _, _ = await ask(door)
    assert status == 500
    assert sum(len(replica.received) for replica in replicas) == 1
    assert (await door.metrics())["responses_total{outcome=failed,slo_class=interactive}"] == 1
