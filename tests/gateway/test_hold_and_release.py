"""Requests that arrive while nothing can take them."""

import asyncio
import json


async def ask(door, **arguments):
    async with door.chat(**arguments) as response:
        return response.status, await response.read(), response.headers


def held(count):
    return lambda state: state["held"] == count


async def test_held_requests_are_visible_and_are_served_when_a_replica_comes(door, start_replica):
    requests = [asyncio.create_task(ask(door, stream=True)) for _ in range(5)]
    await door.until(held(5))
    assert (await door.metrics())["requests_held{}"] == 5
    replica = await start_replica("r1")
    await door.put(replica)
    assert {status for status, _, _ in await asyncio.gather(*requests)} == {200}
    assert (await door.state())["held"] == 0
    assert int(replica.received[0][1]["x-capstan-waited-ms"]) >= 1


async def test_urgent_classes_go_first_when_the_door_opens(door, start_replica):
    requests = []
    for i, model in enumerate(["tiny-batch", "tiny-batch", "tiny", "tiny"]):
        requests.append(asyncio.create_task(ask(door, prompt=str(i), model=model)))
        await door.until(held(i + 1))
    replica = await start_replica("r1")
    await door.put(replica)
    await asyncio.gather(*requests)
    order = [body["messages"][0]["content"] for _, _, body in replica.received]
    assert order == ["2", "3", "0", "1"]


async def test_beyond_the_bound_429_says_when_to_come_back(start_gateway, start_replica):
    door = await start_gateway(max_held_requests=2, hold_timeout_seconds=40)
    requests = [asyncio.create_task(ask(door)) for _ in range(2)]
    await door.until(held(2))
    status, body, headers = await ask(door)
    error = json.loads(body)["error"]
    assert (status, error["type"], error["code"]) == (429, "rate_limit_error", "too_many_waiting")
    assert 35 <= int(headers["retry-after"]) <= 40
    await door.put(await start_replica("r1"))
    assert [status for status, _, _ in await asyncio.gather(*requests)] == [200, 200]


async def test_a_crowd_of_the_patient_does_not_shut_out_the_urgent(start_gateway, start_replica):
    door = await start_gateway(max_held_requests=2)
    crowd = []
    for i in range(2):
        crowd.append(asyncio.create_task(ask(door, prompt=str(i), model="tiny-batch")))
        await door.until(held(i + 1))
    urgent = asyncio.create_task(ask(door, prompt="urgent"))
    status, body, headers = await crowd[1]
    assert (status, json.loads(body)["error"]["code"]) == (429, "too_many_waiting")
    assert "retry-after" in headers
    assert (await ask(door, model="tiny-batch"))[0] == 429
    replica = await start_replica("r1")
    await door.put(replica)
    assert [(await task)[0] for task in (urgent, crowd[0])] == [200, 200]


async def test_waiting_ends_with_503_at_its_time(start_gateway):
    door = await start_gateway(hold_timeout_seconds=0.05)
    status, body, headers = await ask(door, stream=True)
    assert (status, json.loads(body)["error"]["code"]) == (503, "no_replica_ready")
    assert int(headers["retry-after"]) >= 1
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=rejected,slo_class=interactive}"] == 1
    assert metrics["slo_requests_total{slo_class=interactive}"] == 1


async def test_the_clients_own_deadline_ends_waiting_earlier(door):
    status, body, _ = await ask(door, headers={"x-capstan-deadline-ms": "20"})
    assert (status, json.loads(body)["error"]["code"]) == (408, "deadline_exceeded")


async def test_a_held_client_that_leaves_frees_its_place(start_gateway, start_replica):
    door = await start_gateway(max_held_requests=1)
    request = asyncio.create_task(ask(door))
    await door.until(held(1))
    request.cancel()
    await door.until(held(0))
    other = asyncio.create_task(ask(door))
    await door.until(held(1))
    await door.put(await start_replica("r1"))
    assert (await other)[0] == 200


async def test_requests_whose_only_replica_died_come_back_in_even_when_the_room_is_full(
    start_gateway, start_replica, scripts
):
    door = await start_gateway(max_held_requests=0)
    dying = await start_replica("r1", scripts.reset)
    await door.put(dying)
    request = asyncio.create_task(ask(door))
    await dying.arrived.wait()
    await door.put()
    await door.until(held(1))
    await door.put(await start_replica("r2"))
    assert (await request)[0] == 200


async def test_a_request_whose_replica_is_lost_late_waits_as_long_for_another_as_one_that_comes_then(
    start_gateway, start_replica, scripts
):
    async def reset_at_the_gate(replica, request):
        await replica.gate.acquire()
        return await scripts.reset(replica, request)

    door = await start_gateway(hold_timeout_seconds=1)
    dying = await start_replica("r1", reset_at_the_gate)
    await door.put(dying)
    request = asyncio.create_task(ask(door))
    await dying.arrived.wait()
    await door.put()
    # The request is older than a hold may last once this one, which came later, has been held for so long.
    assert (await ask(door))[0] == 503
    dying.gate.release()
    await door.until(held(1))
    await door.put(await start_replica("r2"))
    assert (await request)[0] == 200


async def test_a_request_that_meets_the_last_replica_on_its_way_out_is_held_for_the_next(
    door, start_replica, scripts, unused_port
):
    leaving = await start_replica("r1", scripts.status(503, code="draining"))
    await door.put(leaving)
    request = asyncio.create_task(ask(door))
    await leaving.arrived.wait()
    # It has gone, and nobody has told the gateway.
    leaving.url = f"http://127.0.0.1:{unused_port}"
    await door.put(leaving)
    while (await door.metrics()).get("retries_total{reason=connect}", 0) < 1:
        assert not request.done()
    await door.put()
    await door.until(held(1))
    await door.put(await start_replica("r2"))
    assert (await request)[0] == 200


async def test_requests_nobody_could_serve_do_not_wait_and_wake_nothing(door):
    async with door.chat(model="gpt-9") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "model_not_found")
    assert (await door.state())["held"] == 0


async def test_draining_replicas_get_nothing_new_and_finish_what_they_have(door, start_replica, scripts):
    old, new = await start_replica("old", scripts.gated), await start_replica("new")
    await door.put(old)
    old.gate.release()
    async with door.chat(stream=True) as response:
        await response.content.readuntil(b"\n\n")
        await door.put(new, draining=[old])
        for i in range(4):
            assert (await ask(door, prompt=str(i)))[2]["x-capstan-replica"] == "new"
        await door.put(new)
        (row,) = [r for r in (await door.state())["table"]["replicas"] if r["id"] == "old"]
        assert (row["in_table"], row["in_flight"]) == (False, 1)
        for _ in range(2):
            old.gate.release()
        assert (await response.read()).endswith(b"[DONE]\n\n")
    await door.until(lambda s: len(s["table"]["replicas"]) == 1)
