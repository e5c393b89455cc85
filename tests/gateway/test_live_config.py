"""The configuration is replaced while the gateway serves: at once, as a whole, and at no request's cost."""

import asyncio

import pytest

from capstan_api.engine_args import SloClass
from capstan_gateway.holding import WaitingRoom
from capstan_gateway.metrics import Ended, GatewayMetrics, Outcome
from capstan_gateway.replicas import ReplicaTable

FAST = {"name": "interactive", "priority": 10, "ttft_seconds": 30, "tpot_seconds": 30}
BATCH = {"name": "batch", "header_value": "bulk", "model_alias": "tiny-batch"}
CONFIG = {"served_model_names": ["tiny"], "slo_classes": [FAST, BATCH]}


async def configure(door, expected=200, **fields):
    async with door.admin("PUT", "/admin/config", json=CONFIG | fields) as response:
        answer = await response.json()
        assert response.status == expected, answer
        return answer


async def in_force(door):
    async with door.admin("GET", "/admin/config") as response:
        return await response.json()


async def names(door):
    async with door.session.get(f"{door.url}/v1/models") as response:
        return [model["id"] for model in (await response.json())["data"]]


async def status(door, **arguments):
    async with door.chat(**arguments) as response:
        await response.read()
        return response.status


async def test_an_added_class_takes_requests_and_is_counted_from_zero(door, start_replica):
    replica = await start_replica("r1")
    await door.put(replica)
    assert await status(door, model="tiny-new") == 404

    await configure(door, slo_classes=[FAST, BATCH, {"name": "new", "model_alias": "tiny-new", "ttft_seconds": 0.777}])

    assert await names(door) == ["tiny", "tiny-batch", "tiny-new"]
    assert (await door.metrics())["requests_total{slo_class=new}"] == 0
    assert await status(door, model="tiny-new", stream=True) == 200
    assert await status(door, headers={"x-capstan-slo-class": "new"}, stream=True) == 200
    assert [headers["x-capstan-slo-class"] for _, headers, _ in replica.received] == ["new", "new"]
    assert (await door.metrics())["requests_total{slo_class=new}"] == 2


async def test_served_names_are_replaced(door, start_replica):
    replica = await start_replica("r1")
    await door.put(replica)
    await configure(door, served_model_names=["large", "small"])
    assert await names(door) == ["large", "small", "tiny-batch"]
    assert await status(door, model="tiny") == 404
    assert await status(door, model="small") == 200
    assert await status(door, model="tiny-batch") == 200
    assert [body["model"] for _, _, body in replica.received] == ["small", "large"]


async def test_a_request_is_counted_under_the_class_it_came_with_though_that_is_gone(door, start_replica, scripts):
    replica = await start_replica("r1", scripts.gated)
    await door.put(replica)
    replica.gate.release()
    async with door.chat(stream=True) as open_stream:
        beginning = await open_stream.content.readuntil(b"\n\n")
        await configure(door, slo_classes=[FAST | {"name": "renamed", "ttft_seconds": 7.77}])
        assert "requests_total{slo_class=interactive}" not in await door.metrics()
        for _ in range(2):
            replica.gate.release()
        rest = await open_stream.read()
    assert (beginning + rest).count(b'"content"') == 3
    assert rest.endswith(b"[DONE]\n\n")
    state = await door.until(lambda s: s["open"] == 0)
    assert state["in_flight"] == 0
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=completed,slo_class=interactive}"] == 1
    assert metrics["slo_good_requests_total{objective=all,slo_class=interactive}"] == 1
    assert metrics["responses_total{outcome=completed,slo_class=renamed}"] == 0

    await configure(door)
    assert (await door.metrics())["responses_total{outcome=completed,slo_class=interactive}"] == 0


async def test_requests_that_are_held_stay_so_and_newcomers_meet_the_new_bound(door, start_replica):
    held = [asyncio.create_task(status(door)) for _ in range(2)]
    await door.until(lambda s: s["held"] == 2)
    await configure(door, max_held_requests=1)
    assert await status(door) == 429
    await configure(door, max_held_requests=3)
    held.append(asyncio.create_task(status(door)))
    await door.until(lambda s: s["held"] == 3)
    await door.put(await start_replica("r1"))
    assert await asyncio.gather(*held) == [200, 200, 200]


async def test_a_shorter_hold_is_the_next_requests_hold(door):
    await configure(door, hold_timeout_seconds=0.01)
    assert await status(door) == 503


async def test_prefix_affinity_can_be_switched_off(door, start_replica):
    await door.put(await start_replica("a"), await start_replica("b"))
    prompt = "the same beginning " * 100
    for affinity in (True, False):
        await configure(door, prefix_affinity=affinity)
        before = (await door.state())["routed"]["prefix"]
        for _ in range(3):
            assert await status(door, prompt=prompt) == 200
        gained = (await door.state())["routed"]["prefix"] - before
        assert (gained > 0) is affinity


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"served_model_names": []}, "served_model_names"),
        ({"hold_timeout_seconds": 0}, "hold_timeout_seconds"),
        ({"slo_classes": [FAST | {"ttft_seconds": -1}]}, "slo_classes.0.ttft_seconds"),
        ({"slo_classes": [FAST | {"model_alias": "other"}]}, "slo_classes"),
        ({"slo_classes": [FAST, FAST]}, "slo_classes"),
        ({"slo_classes": []}, "slo_classes"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_is_invalid_is_refused_by_its_field_and_the_old_one_stays(door, fields, param):
    before = await in_force(door)
    answer = await configure(door, 400, **({"max_held_requests": 7, "served_model_names": ["other"]} | fields))
    assert answer["error"]["param"] == param
    assert await in_force(door) == before
    assert await names(door) == ["tiny", "tiny-batch"]
    assert "requests_total{slo_class=batch}" in await door.metrics()


async def test_what_belongs_to_the_process_stays_as_it_was_started(door):
    answer = await configure(door, host="0.0.0.0", port=1, admin_port=2, cpus=[99], max_held_requests=7)
    assert answer == await in_force(door)
    assert [answer[name] for name in ("host", "port", "admin_port", "cpus")] == ["127.0.0.1", 0, 0, []]
    assert answer["max_held_requests"] == 7


async def test_the_configuration_is_behind_the_token(door):
    for method in ("GET", "PUT"):
        async with door.admin(method, "/admin/config", json=CONFIG, headers={}) as response:
            assert response.status == 401


STRICT, LAX = SloClass(name="strict", ttft_seconds=0.5, tpot_seconds=0.05), SloClass(name="lax", ttft_seconds=5)
DONE = Ended(Outcome.COMPLETED, 0.4, 0.04)


@pytest.fixture
def metrics():
    metrics = GatewayMetrics((STRICT, LAX), ReplicaTable(lambda: None), WaitingRoom(1))
    for slo_class in (STRICT, LAX):
        metrics.arrived(slo_class, 0)
        metrics.first_token(slo_class, DONE.ttft_s)
        metrics.ended(slo_class, DONE, 0)
    return metrics


def samples(metrics, name):
    lines = metrics.render().decode().splitlines()
    pairs = [line.removeprefix(f"capstan_gateway_{name}").rsplit(" ", 1) for line in lines if f"gateway_{name}" in line]
    return {labels: float(value) for labels, value in pairs if labels.startswith("{")}


def test_a_new_threshold_is_an_exact_bound_and_its_histogram_starts_from_zero(metrics):
    metrics.declare((STRICT.model_copy(update={"ttft_seconds": 0.777}), LAX))

    buckets = samples(metrics, "time_to_first_token_seconds_bucket")
    assert buckets['{le="0.777",slo_class="strict"}'] == buckets['{le="0.777",slo_class="lax"}'] == 0
    assert '{le="0.5",slo_class="strict"}' not in buckets
    assert set(samples(metrics, "time_to_first_token_seconds_count").values()) == {0}
    # Nothing else needs other bounds, and what need not start again does not.
    assert set(samples(metrics, "time_per_output_token_seconds_count").values()) == {1}
    assert set(samples(metrics, "requests_total").values()) == {1}

    metrics.first_token(STRICT, 0.777)
    assert samples(metrics, "time_to_first_token_seconds_bucket")['{le="0.777",slo_class="strict"}'] == 1


def test_the_same_thresholds_keep_every_count(metrics):
    before = metrics.render()
    metrics.declare((STRICT.model_copy(update={"priority": 3, "header_value": "s"}), LAX))
    assert metrics.render() == before


def test_a_class_that_comes_back_starts_from_zero(metrics):
    # A reader that did not know it in between takes its counters for what has come since.
    metrics.declare((STRICT,))
    assert set(samples(metrics, "requests_total")) == {'{slo_class="strict"}'}
    metrics.declare((STRICT, LAX))
    assert samples(metrics, "requests_total") == {'{slo_class="strict"}': 1, '{slo_class="lax"}': 0}
    assert samples(metrics, "responses_total")['{outcome="completed",slo_class="lax"}'] == 0
