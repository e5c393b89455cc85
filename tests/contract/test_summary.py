"""The texts in the columns of `kubectl get` say what the figures behind them say."""

from capstan_api import status
from capstan_api.limits import BatchLimits
from capstan_api.spec import Objective, Selector, Slo
from capstan_api.status import SloStatus, Summary

CHAT = Slo(name="chat", ttft=Objective(threshold_milliseconds=1000), tpot=Objective(threshold_milliseconds=60))
BULK = Slo(name="bulk", ttft=Objective(threshold_milliseconds=9000), selector=Selector(), objective_percent="90")
LIMITS = BatchLimits(max_sequences=64, max_batched_tokens=2048)


def result(
    name: str, attainment: str | None, ttft: int | None = 412, tpot: int | None = 38, budget: str | None = None
) -> SloStatus:
    return SloStatus(
        name=name,
        ttft_milliseconds=ttft,
        tpot_milliseconds=tpot,
        attainment_percent=attainment,
        error_budget_remaining_percent=budget,
    )


def summarize(
    classes: list[Slo], results: list[SloStatus], limits: BatchLimits | None = LIMITS, ready: int = 1, desired: int = 1
) -> Summary:
    return status.summarize("tiny", "cpu", classes, results, limits, ready, desired)


def test_a_measured_deployment() -> None:
    results = [result("chat", "99.2", budget="84.04"), result("bulk", "90", budget="-3.21")]
    assert summarize([CHAT, BULK], results, ready=3, desired=4) == Summary(
        model="tiny",
        variant="cpu",
        replicas="3/4",
        slo="Met",
        ttft="412/1000ms",
        tpot="38/60ms",
        batch="64x2048",
        budget="-3.2",
    )


def test_one_missed_class_is_enough() -> None:
    assert summarize([CHAT, BULK], [result("chat", "99"), result("bulk", "89.99")]).slo == "Missed"


def test_a_measured_class_speaks_for_an_idle_one() -> None:
    assert summarize([CHAT, BULK], [result("bulk", "95")]).slo == "Met"


def test_nothing_measured_is_unknown_and_not_met() -> None:
    summary = summarize([CHAT], [], None, ready=0)
    assert summary == Summary(
        model="tiny", variant="cpu", replicas="0/1", slo="Unknown", ttft="-/1000ms", tpot="-/60ms"
    )
    assert summarize([CHAT], [result("chat", None, None, None)], None, ready=0).slo == "Unknown"


def test_an_undeclared_latency_has_an_empty_column() -> None:
    assert summarize([BULK], [result("bulk", "95")]).tpot == ""


def test_another_percentile_than_the_columns_head_says_is_named() -> None:
    strict = CHAT.model_copy(update={"ttft": Objective(percentile=99, threshold_milliseconds=1000)})
    assert summarize([strict], [result("chat", "95")]).ttft == "412/1000ms p99"
