"""The texts in the columns of `kubectl get` say what the figures behind them say."""

from capstan_api.limits import BatchLimits
from capstan_api.spec import Objective, Selector, Slo
from capstan_api.status import SloStatus, Summary, summarize

CHAT = Slo(name="chat", ttft=Objective(threshold_milliseconds=1000), tpot=Objective(threshold_milliseconds=60))
BULK = Slo(name="bulk", ttft=Objective(threshold_milliseconds=9000), selector=Selector(), objective_percent="90")
LIMITS = BatchLimits(max_sequences=64, max_batched_tokens=2048)


def result(name: str, attainment: str | None, ttft: int | None = 412, tpot: int | None = 38) -> SloStatus:
    return SloStatus(name=name, ttft_milliseconds=ttft, tpot_milliseconds=tpot, attainment_percent=attainment)


def test_a_measured_deployment() -> None:
    summary = summarize([CHAT, BULK], [result("chat", "99.2"), result("bulk", "90")], LIMITS, ready=3, desired=4)
    assert summary == Summary(replicas="3/4", slo="Met", ttft="412/1000ms", tpot="38/60ms", batch="64x2048")


def test_one_missed_class_is_enough() -> None:
    summary = summarize([CHAT, BULK], [result("chat", "99"), result("bulk", "89.99")], LIMITS, ready=1, desired=1)
    assert summary.slo == "Missed"


def test_a_measured_class_speaks_for_an_idle_one() -> None:
    assert summarize([CHAT, BULK], [result("bulk", "95")], LIMITS, ready=1, desired=1).slo == "Met"


def test_nothing_measured_is_unknown_and_not_met() -> None:
    summary = summarize([CHAT], [], None, ready=0, desired=1)
    assert summary == Summary(replicas="0/1", slo="Unknown", ttft="-/1000ms", tpot="-/60ms", batch="")
    assert summarize([CHAT], [result("chat", None, None, None)], None, ready=0, desired=1).slo == "Unknown"


def test_an_undeclared_latency_has_an_empty_column() -> None:
    assert summarize([BULK], [result("bulk", "95")], LIMITS, ready=1, desired=1).tpot == ""
