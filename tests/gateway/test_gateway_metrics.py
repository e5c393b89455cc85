"""What is counted, and what is counted as good."""

import asyncio
from itertools import pairwise

import pytest
from aiohttp import web

from capstan_api.engine_args import SloClass
from capstan_api.metrics import Gateway as Catalogue
from capstan_api.metrics import catalogue
from capstan_gateway.holding import WaitingRoom
from capstan_gateway.meter import Usage
from capstan_gateway.metrics import Ended, GatewayMetrics, Outcome
from capstan_gateway.replicas import ReplicaTable

STRICT = SloClass(name="strict", ttft_seconds=0.5, tpot_seconds=0.05)


@pytest.fixture
def count():
    metrics = GatewayMetrics((STRICT,), ReplicaTable(lambda: None), WaitingRoom(1))

    def counted(*ends: Ended) -> dict[str, float]:
        for ended in ends:
            metrics.ended(STRICT, ended, 0)
        good = {
            key: _sample(metrics, f'capstan_gateway_slo_good_requests_total{{objective="{key}",slo_class="strict"}}')
            for key in ("ttft", "tpot", "all")
        }
        return good | {"total": _sample(metrics, 'capstan_gateway_slo_requests_total{slo_class="strict"}')}

    return counted


def _sample(metrics, series):
    (line,) = [line for line in metrics.render().decode().splitlines() if line.startswith(series)]
    return float(line.rpartition(" ")[2])


@pytest.mark.parametrize(
    ("ended", "ttft", "tpot", "good", "total"),
    [
        (Ended(Outcome.COMPLETED, 0.5, 0.05), 1, 1, 1, 1),
        (Ended(Outcome.COMPLETED, 0.51, 0.05), 0, 1, 0, 1),
        (Ended(Outcome.COMPLETED, 0.5, 0.051), 1, 0, 0, 1),
        (Ended(Outcome.COMPLETED, 0.5, None), 1, 1, 1, 1),
        (Ended(Outcome.COMPLETED, None, None), 0, 0, 0, 0),
        (Ended(Outcome.FAILED, 0.1, 0.01), 0, 0, 0, 1),
        (Ended(Outcome.TRUNCATED), 0, 0, 0, 1),
        (Ended(Outcome.REJECTED), 0, 0, 0, 1),
        (Ended(Outcome.CANCELLED), 0, 0, 0, 0),
        (Ended(Outcome.INVALID), 0, 0, 0, 0),
    ],
)
def test_good_and_total_count_what_the_service_owes(count, ended, ttft, tpot, good, total):
    assert count(ended) == {"ttft": ttft, "tpot": tpot, "all": good, "total": total}


def test_every_series_of_the_catalogue_is_there_before_the_first_request(count):
    metrics = GatewayMetrics((STRICT,), ReplicaTable(lambda: None), WaitingRoom(1))
    text = metrics.render().decode()
    for metric in catalogue(Catalogue):
        assert f"# TYPE {metric.name} {metric.kind}" in text


def test_thresholds_are_bucket_bounds():
    metrics = GatewayMetrics((SloClass(name="s", ttft_seconds=0.777, tpot_seconds=0.0333),),
                             ReplicaTable(lambda: None), WaitingRoom(1))  # fmt: skip
    text = metrics.render().decode()
    assert 'capstan_gateway_time_to_first_token_seconds_bucket{le="0.777",slo_class="s"}' in text
    assert 'capstan_gateway_time_per_output_token_seconds_bucket{le="0.0333",slo_class="s"}' in text


def test_tokens_are_counted_where_they_are_known():
    metrics = GatewayMetrics((STRICT,), ReplicaTable(lambda: None), WaitingRoom(1))
    metrics.ended(STRICT, Ended(Outcome.COMPLETED, 0.1, 0.1, Usage(None, 3)), 0)
    metrics.ended(STRICT, Ended(Outcome.COMPLETED, 0.1, 0.1, Usage(7, 4)), 0)
    assert _sample(metrics, 'capstan_gateway_prompt_tokens_total{slo_class="strict"}') == 7
    assert _sample(metrics, 'capstan_gateway_output_tokens_total{slo_class="strict"}') == 7


def test_prompts_count_when_they_arrive_by_what_a_guess_has_meant_lately():
    metrics = GatewayMetrics((STRICT,), ReplicaTable(lambda: None), WaitingRoom(1))
    series = 'capstan_gateway_arrived_prompt_tokens_total{slo_class="strict"}'
    metrics.arrived(STRICT, 500)
    assert _sample(metrics, series) == 500
    for _ in range(3):
        metrics.ended(STRICT, Ended(Outcome.COMPLETED, 0.1, 0.1, Usage(800, 3)), 400)
    metrics.arrived(STRICT, 500)
    assert _sample(metrics, series) == pytest.approx(500 + 2 * 500)


async def test_a_stream_is_measured_from_arrival_to_its_tokens(door, start_replica):
    await door.put(await start_replica("r1"))
    async with door.chat(stream=True, stream_options={"include_usage": True}) as response:
        await response.read()
    metrics = await door.metrics()
    assert metrics["requests_total{slo_class=interactive}"] == 1
    assert metrics["time_to_first_token_seconds_count{slo_class=interactive}"] == 1
    assert metrics["time_per_output_token_seconds_count{slo_class=interactive}"] == 1
    assert metrics["prompt_tokens_total{slo_class=interactive}"] == 7
    assert metrics["output_tokens_total{slo_class=interactive}"] == 3
    assert metrics["slo_good_requests_total{objective=all,slo_class=interactive}"] == 1


async def test_holding_is_part_of_the_ttft(door, start_replica):
    request = asyncio.create_task(_read(door))
    await door.until(lambda s: s["held"] == 1)
    replica = await start_replica("r1")
    await door.put(replica)
    await request
    waited_s = int(replica.received[0][1]["x-capstan-waited-ms"]) / 1000
    assert 0 < waited_s <= (await door.metrics())["time_to_first_token_seconds_sum{slo_class=interactive}"] + 0.001


async def test_a_deadline_missed_while_waiting_counts_against_the_slo(door):
    async with door.chat(headers={"x-capstan-deadline-ms": "30"}) as response:
        assert response.status == 408
    metrics = await door.metrics()
    assert metrics["responses_total{outcome=failed,slo_class=interactive}"] == 1
    assert metrics["slo_requests_total{slo_class=interactive}"] == 1


@pytest.mark.parametrize(("reported", "total"), [({"x-capstan-ttft-ms": "250", "x-capstan-tpot-ms": "10"}, 1), ({}, 0)])
async def test_a_whole_answer_is_judged_by_what_its_engine_reports(door, start_replica, reported, total):
    async def script(replica, request):
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return web.json_response({"choices": [], "usage": usage}, headers=reported)

    await door.put(await start_replica("r1", script))
    async with door.chat() as response:
        assert response.status == 200
    metrics = await door.metrics()
    assert metrics["slo_requests_total{slo_class=interactive}"] == total
    assert metrics["slo_good_requests_total{objective=all,slo_class=interactive}"] == total
    assert metrics["time_to_first_token_seconds_count{slo_class=interactive}"] == total
    assert metrics["output_tokens_total{slo_class=interactive}"] == 3
    if total:
        assert metrics["time_to_first_token_seconds_sum{slo_class=interactive}"] >= 0.25


async def test_tokenizing_is_no_request_for_tokens(door, start_replica):
    await door.put(await start_replica("r1"))
    async with door.session.post(f"{door.url}/tokenize", json={"prompt": "x"}) as response:
        assert response.status == 200
    assert (await door.metrics())["requests_total{slo_class=interactive}"] == 0


async def test_gauges_follow_the_table_and_forget_what_has_gone(door, start_replica):
    a, b = await start_replica("a"), await start_replica("b")
    await door.put(a, draining=[b])
    metrics = await door.metrics()
    assert (metrics["replicas{state=ready}"], metrics["replicas{state=draining}"]) == (1, 1)
    assert metrics["requests_in_flight{replica=b}"] == 0
    await door.put(a)
    assert "requests_in_flight{replica=b}" not in await door.metrics()


async def _read(door):
    async with door.chat(stream=True) as response:
        return await response.read()


def test_histogram_bounds_rise():
    for metric in catalogue(Catalogue):
        assert all(a < b for a, b in pairwise(metric.bounds((0.1, 0.2))))
