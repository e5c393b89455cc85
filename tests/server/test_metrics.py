"""What the metrics say of requests whose course is known."""

import asyncio
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from scripted_client import ScriptedClient, idle_state
from serving import SLO_CLASSES, Served, serving

from capstan_api.engine_args import MetricsCompatibility
from capstan_api.metrics import Engine, Kind, catalogue
from capstan_engine.errors import QueueFull, RequestTooLarge
from capstan_engine.messages import FinishReason, StepSample, Update
from capstan_engine.server.metrics import Metrics

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(page: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def scraped(served: Served) -> Samples:
    return parsed((await served.http.get("/metrics")).text)


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


async def test_a_completed_request_is_counted_once_everywhere(served: Served) -> None:
    await served.http.post(CHAT, json=BODY)
    found = await scraped(served)
    own = {"slo_class": "interactive"}
    assert value(found, "capstan_engine_slo_requests_total", **own) == 1
    for objective in ("ttft", "tpot", "all"):
        assert value(found, "capstan_engine_slo_good_requests_total", objective=objective, **own) == 1
    assert value(found, "capstan_engine_time_to_first_token_seconds_count", **own) == 1
    assert value(found, "capstan_engine_time_per_output_token_seconds_count", **own) == 1
    assert value(found, "capstan_engine_inter_token_latency_seconds_count", **own) == 4
    assert value(found, "capstan_engine_queue_seconds_count", **own) == 1
    assert value(found, "capstan_engine_request_duration_seconds_count", **own) == 1
    assert value(found, "capstan_engine_requests_finished_total", finished_reason="length") == 1
    assert value(found, "capstan_engine_output_tokens_total") == 5
    assert value(found, "capstan_engine_request_output_tokens_sum") == 5
    assert value(found, "capstan_engine_prompt_tokens_total") == value(
        found, "capstan_engine_request_prompt_tokens_sum"
    )


async def test_a_slow_request_is_counted_and_not_good(served: Served) -> None:
    await served.http.post(CHAT, json=BODY, headers={"x-capstan-slo-class": "bulk"})  # thresholds of a nanosecond
    found = await scraped(served)
    assert value(found, "capstan_engine_slo_requests_total", slo_class="batch") == 1
    for objective in ("ttft", "tpot", "all"):
        assert value(found, "capstan_engine_slo_good_requests_total", objective=objective, slo_class="batch") == 0


async def test_a_single_token_has_no_tpot_and_meets_any(served: Served) -> None:
    await served.http.post(CHAT, json=BODY | {"max_tokens": 1}, headers={"x-capstan-slo-class": "bulk"})
    found = await scraped(served)
    assert value(found, "capstan_engine_slo_good_requests_total", objective="tpot", slo_class="batch") == 1
    assert value(found, "capstan_engine_time_per_output_token_seconds_count", slo_class="batch") == 0


@pytest.mark.parametrize("reason", [FinishReason.DEADLINE, FinishReason.ERROR])
async def test_a_failed_request_counts_against_the_slo(
    served: Served, engine: ScriptedClient, reason: FinishReason
) -> None:
    engine.end_with = reason
    await served.http.post(CHAT, json=BODY)
    found = await scraped(served)
    assert value(found, "capstan_engine_slo_requests_total", slo_class="interactive") == 1
    assert value(found, "capstan_engine_slo_good_requests_total", slo_class="interactive", objective="all") == 0
    assert value(found, "capstan_engine_requests_finished_total", finished_reason=reason) == 1


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_says_nothing_about_the_slo(
    served_on_network: Served, engine: ScriptedClient, stream: bool
) -> None:
    served = served_on_network
    engine.gate.clear()
    engine.hold_after = 1
    asking = asyncio.create_task(served.http.post(CHAT, json=BODY | {"stream": stream}))
    await asyncio.wait_for(engine.reading.wait(), 10)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.wait_for(engine.changed.wait(), 10)
    found = await scraped(served)
    assert value(found, "capstan_engine_slo_requests_total", slo_class="interactive") == 0
    assert value(found, "capstan_engine_requests_finished_total", finished_reason="abort") == 1


async def test_a_stop_string_is_a_stop_and_no_abort(served: Served) -> None:
    await served.http.post(CHAT, json=BODY | {"stop": "quick"})
    found = await scraped(served)
    assert value(found, "capstan_engine_requests_finished_total", finished_reason="stop") == 1
    assert value(found, "capstan_engine_requests_finished_total", finished_reason="abort") == 0


async def test_refusals_are_counted_by_reason(served: Served, engine: ScriptedClient) -> None:
    await served.http.post(CHAT, json=BODY | {"temperature": 9})
    await served.http.post(CHAT, json=BODY | {"max_tokens": 10_000})
    engine.refuse = RequestTooLarge("needs more blocks than there are")
    await served.http.post(CHAT, json=BODY)
    engine.refuse = QueueFull("full", retry_after_seconds=1)
    await served.http.post(CHAT, json=BODY)
    await served.admin.post("/admin/drain")
    await served.http.post(CHAT, json=BODY)
    found = await scraped(served)
    counts = {"invalid": 1, "too_large": 2, "queue_full": 1, "draining": 1}
    for reason, count in counts.items():
        assert value(found, "capstan_engine_requests_rejected_total", reason=reason) == count
    assert value(found, "capstan_engine_slo_requests_total", slo_class="interactive") == 0


async def test_the_core_s_numbers_and_steps_are_shown(served: Served, engine: ScriptedClient) -> None:
    engine.state = idle_state().__class__(**{
        **{name: getattr(idle_state(), name) for name in idle_state().__struct_fields__},
        "running": 3, "waiting": 2, "blocks_held": 25, "blocks_cached": 5, "steps": 17, "preemptions": 4,
    })  # fmt: skip
    samples = [
        StepSample(1, 1.0, 0.02, 8, 0, 0, 9),
        StepSample(2, 2.0, 0.01, 0, 3, 9, 0),
        StepSample(3, 3.0, 0.03, 8, 3, 9, 9),
    ]
    for observe in engine.on_update:
        observe(Update(outputs=[], steps=samples, state=engine.state))
    found = await scraped(served)
    assert value(found, "capstan_engine_requests_running") == 3
    assert value(found, "capstan_engine_requests_waiting") == 2
    assert value(found, "capstan_engine_kv_cache_usage_ratio") == 0.25
    assert [value(found, "capstan_engine_kv_blocks", state=s) for s in ("held", "cached", "free")] == [25, 5, 70]
    assert value(found, "capstan_engine_steps_total") == 17
    assert value(found, "capstan_engine_batch_limit", limit="max_sequences") == 8
    for phase, seconds in (("prefill", 0.02), ("decode", 0.01), ("mixed", 0.03)):
        assert value(found, "capstan_engine_step_duration_seconds_sum", phase=phase) == seconds


async def test_limit_changes_are_counted_by_cause(served: Served) -> None:
    await served.admin.patch("/admin/limits", json={"max_sequences": 3}, headers={"if-match": "*"})
    await served.admin.patch("/admin/limits", json={"max_sequences": 3}, headers={"if-match": "*"})
    found = await scraped(served)
    assert value(found, "capstan_engine_batch_limit_changes_total", cause="operator") == 1
    assert value(found, "capstan_engine_batch_limit_changes_total", cause="lease_expired") == 0


async def test_every_series_of_the_catalogue_exists_from_the_start(served: Served) -> None:
    page = (await served.http.get("/metrics")).text
    names = {sample[0] for sample in parsed(page)}
    for metric in catalogue(Engine):
        assert (f"{metric.name}_count" if metric.kind is Kind.HISTOGRAM else metric.name) in names
    assert "vllm:" not in page
    assert "_created" not in page


def test_thresholds_are_bucket_bounds() -> None:
    page = Metrics(SLO_CLASSES, lambda: None).render().decode()
    assert 'capstan_engine_time_to_first_token_seconds_bucket{le="1e-09",slo_class="interactive"}' in page
    assert 'capstan_engine_time_per_output_token_seconds_bucket{le="10.0",slo_class="batch"}' in page


async def test_vllm_names_show_the_same_values(engine: ScriptedClient) -> None:
    async with serving(engine, metrics_compatibility=MetricsCompatibility.VLLM) as served:
        await served.http.post(CHAT, json=BODY)
        found = await scraped(served)
        labels = {"model_name": "tiny", "engine": "0"}
        assert value(found, "vllm:generation_tokens_total", **labels) == 5
        assert value(found, "vllm:num_requests_running", **labels) == 0
        assert value(found, "vllm:kv_cache_usage_perc", **labels) == 0
        assert value(found, "vllm:request_success_total", finished_reason="length", **labels) == 1
        assert value(found, "vllm:time_to_first_token_seconds_count", slo_class="interactive", **labels) == 1
        names = {sample[0] for sample in found}
        for metric in catalogue(Engine):
            if metric.vllm is not None:
                assert (f"{metric.vllm}_count" if metric.kind is Kind.HISTOGRAM else metric.vllm) in names
