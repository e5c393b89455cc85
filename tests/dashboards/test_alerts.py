"""Each alert on made-up series: it fires when it should, with its sentence filled in, and is silent when it should be.

promtool runs the generated rules themselves, recording rules included, on Prometheus' own engine.
"""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.alerts import ALERTS, Alert

from capstan_api.metrics import Engine, Gateway, Metric, Operator
from dashboards import rules

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "dashboards/generated/rules.yaml"
CHAT = {"namespace": "prod", "deployment": "chat"}
CLASS = {**CHAT, "slo_class": "interactive"}
GATEWAY = {**CHAT, "pod": "chat-gateway-1"}
ENGINE = {**CHAT, "pod": "chat-abc-0"}
LEADER = {"namespace": "capstan-system", "pod": "capstan-1"}
Series = tuple[str, str]


def series(metric: Metric, values: str, **labels: str) -> Series:
    """One input series; a value each minute, in promtool's notation."""
    own = ",".join(f'{name}="{value}"' for name, value in labels.items())
    return f"{metric.name}{{{own}}}", values


def requests(good_a_minute: int, bad_a_minute: int, minutes: int, objective: float) -> list[Series]:
    """A class with so many good and bad requests, spread over two gateways, and its objective."""
    both = good_a_minute + bad_a_minute
    counted = []
    for pod, share in (("chat-gateway-1", 3), ("chat-gateway-2", 1)):
        labels = {**CLASS, "pod": pod}
        counted += [
            series(Gateway.SLO_TOTAL, f"0+{both * share}x{minutes}", **labels),
            series(Gateway.SLO_GOOD, f"0+{good_a_minute * share}x{minutes}", **labels, objective="all"),
            series(Gateway.SLO_GOOD, f"0+{both * share}x{minutes}", **labels, objective="ttft"),
        ]
    return [*counted, series(Operator.OBJECTIVE, f"{objective:g}x{minutes}", **CLASS, pod="capstan-1")]


def condition(kind: str, status: str, values: str = "1x30") -> list[Series]:
    others = {"True", "False", "Unknown"} - {status}
    return [
        series(Operator.CONDITION, values, **CHAT, type=kind, status=status),
        *(series(Operator.CONDITION, "0x30", **CHAT, type=kind, status=other) for other in sorted(others)),
    ]


@dataclass(frozen=True)
class Case:
    """`fires` None: silent. Else the labels of the one alert that fires, and how its value reads."""

    alert: str
    what: str
    given: list[Series]
    at: str
    fires: dict[str, str] | None = None
    value: str = ""


HEARTBEAT_OF_A_RESTARTER = "0+60x5 0+60x5 0+60x5 0+60x10"
CASES = [
    Case(
        "CapstanErrorBudgetBurnsFast",
        "a fifth of the requests is bad for an hour, of 1 % allowed",
        requests(80, 20, 90, 0.99),
        "70m",
        CLASS,
        "20%",
    ),
    Case(
        "CapstanErrorBudgetBurnsFast",
        "six times too fast for hours is found by the longer pair",
        requests(92, 8, 420, 0.99),
        "400m",
        CLASS,
        "8%",
    ),
    Case(
        "CapstanErrorBudgetBurnsFast",
        "everything is bad, under an objective whose budget times six is above all",
        requests(0, 100, 90, 0.8),
        "70m",
        CLASS,
        "100%",
    ),
    Case(
        "CapstanErrorBudgetBurnsFast",
        "the operator is gone and its last objective stays in force",
        [*requests(80, 20, 90, 0.99)[:-1], series(Operator.OBJECTIVE, "0.99x10", **CLASS)],
        "70m",
        CLASS,
        "20%",
    ),
    Case("CapstanErrorBudgetBurnsFast", "as many bad ones as are allowed", requests(99, 1, 420, 0.99), "400m"),
    Case(
        "CapstanErrorBudgetBurnsFast",
        "it was bad and is good again",
        [
            series(Gateway.SLO_TOTAL, "0+100x90", **CLASS, pod="chat-gateway-1"),
            series(Gateway.SLO_GOOD, "0+80x60 4900+100x30", **CLASS, pod="chat-gateway-1", objective="all"),
            series(Operator.OBJECTIVE, "0.99x90", **CLASS),
        ],
        "85m",
    ),
    Case("CapstanErrorBudgetBurnsFast", "no requests at all", requests(0, 0, 90, 0.99), "70m"),
    Case(
        "CapstanErrorBudgetBurnsSlowly",
        "four times too fast for hours",
        requests(96, 4, 420, 0.99),
        "400m",
        CLASS,
        "4%",
    ),
    Case("CapstanErrorBudgetBurnsSlowly", "just inside the budget", requests(1991, 9, 420, 0.99), "400m"),
    Case(
        "CapstanRequestsFail",
        "one in twenty is cut off",
        [
            series(Gateway.RESPONSES, "0+95x30", **GATEWAY, slo_class="interactive", outcome="completed"),
            series(Gateway.RESPONSES, "0+5x30", **GATEWAY, slo_class="interactive", outcome="truncated"),
        ],
        "20m",
        CHAT,
        "5%",
    ),
    Case(
        "CapstanRequestsFail",
        "overload and the clients' own mistakes are no failures",
        [
            series(Gateway.RESPONSES, "0+95x30", **GATEWAY, slo_class="interactive", outcome="completed"),
            series(Gateway.RESPONSES, "0+50x30", **GATEWAY, slo_class="interactive", outcome="rejected"),
            series(Gateway.RESPONSES, "0+50x30", **GATEWAY, slo_class="interactive", outcome="invalid"),
        ],
        "20m",
    ),
    Case("CapstanRequestsHeld", "nobody comes", [series(Gateway.HELD, "0 0 3x30", **GATEWAY)], "20m", GATEWAY, "3"),
    Case("CapstanRequestsHeld", "a start from zero", [series(Gateway.HELD, "0 0 3x3 0x30", **GATEWAY)], "6m"),
    Case("CapstanCapacityNotAvailable", "no node for it", condition("CapacityAvailable", "False"), "10m", CHAT, "1"),
    Case("CapstanCapacityNotAvailable", "not known yet", condition("CapacityAvailable", "Unknown"), "10m"),
    Case(
        "CapstanReplicasMissing",
        "three wanted, two ready for long",
        [series(Operator.DESIRED_REPLICAS, "3x60", **CHAT), series(Operator.READY_REPLICAS, "2x60", **CHAT)],
        "40m",
        CHAT,
        "3",
    ),
    Case(
        "CapstanReplicasMissing",
        "a start that takes its time",
        [series(Operator.DESIRED_REPLICAS, "3x60", **CHAT), series(Operator.READY_REPLICAS, "2x15 3x60", **CHAT)],
        "40m",
    ),
    Case("CapstanRolloutFailed", "rolled back", condition("RolloutHealthy", "False"), "1m", CHAT, "1"),
    Case("CapstanRolloutFailed", "rolling", condition("RolloutHealthy", "Unknown"), "1m"),
    Case("CapstanConfigurationInvalid", "refused", condition("ConfigurationValid", "False"), "5m", CHAT, "1"),
    Case(
        "CapstanConfigurationInvalid",
        "corrected within a minute",
        condition("ConfigurationValid", "False", "1 0x30"),
        "5m",
    ),
    Case("CapstanMetricsStale", "blind", condition("MetricsFresh", "False"), "10m", CHAT, "1"),
    Case("CapstanMetricsStale", "never measured", condition("MetricsFresh", "Unknown"), "10m", CHAT, "1"),
    Case("CapstanMetricsStale", "fresh", condition("MetricsFresh", "True"), "10m"),
    Case(
        "CapstanLimitsReverted",
        "a lease ran out",
        [series(Engine.LIMIT_CHANGES, "0x5 1x30", **ENGINE, cause="lease_expired")],
        "10m",
        CHAT,
    ),
    Case(
        "CapstanLimitsReverted",
        "the operator moves them",
        [
            series(Engine.LIMIT_CHANGES, "0+3x30", **ENGINE, cause="operator"),
            series(Engine.LIMIT_CHANGES, "0x30", **ENGINE, cause="lease_expired"),
        ],
        "10m",
    ),
    Case(
        "CapstanLimitsReverted",
        "a replica drains for longer than its lease",
        [
            series(Engine.LIMIT_CHANGES, "0x5 1x3 _x20", **ENGINE, cause="lease_expired"),
            series(Operator.UNREADY_REPLICAS, "0x4 1x5 0x20", **CHAT, pod="capstan-1", phase="draining"),
        ],
        "10m",
    ),
    Case(
        "CapstanEngineStuck",
        "the loop stands still",
        [series(Engine.HEARTBEAT, "0+60x5 300x30", **ENGINE)],
        "12m",
        ENGINE,
    ),
    Case("CapstanEngineStuck", "idle and turning", [series(Engine.HEARTBEAT, "0+1x30", **ENGINE)], "12m"),
    Case("CapstanEngineStuck", "a pod that is gone", [series(Engine.HEARTBEAT, "0+60x5 300 stale", **ENGINE)], "12m"),
    Case(
        "CapstanEngineRestarts",
        "again and again",
        [series(Engine.HEARTBEAT, HEARTBEAT_OF_A_RESTARTER, **ENGINE)],
        "25m",
        ENGINE,
        "3",
    ),
    Case("CapstanEngineRestarts", "once", [series(Engine.HEARTBEAT, "0+60x10 0+60x20", **ENGINE)], "25m"),
    Case("CapstanOperatorDown", "nobody leads", [series(Operator.IS_LEADER, "0x30", **LEADER)], "10m", {}),
    Case("CapstanOperatorDown", "nobody is there", [series(Operator.OBJECTS, "1x3", **LEADER)], "10m", {}),
    Case(
        "CapstanOperatorDown",
        "one of two leads",
        [
            series(Operator.IS_LEADER, "0x30", **LEADER),
            series(Operator.IS_LEADER, "1x30", namespace="capstan-system", pod="capstan-2"),
        ],
        "10m",
    ),
    Case(
        "CapstanOperatorBlind",
        "a dead watch",
        [series(Operator.WATCH_AGE, "0+30x30", **LEADER, resource="pods")],
        "10m",
        {**LEADER, "resource": "pods"},
        "5m 0s",
    ),
    Case(
        "CapstanOperatorBlind",
        "a watch that is renewed",
        [series(Operator.WATCH_AGE, "0 30 60 90 0 30 60 90 0 30 60 90", **LEADER, resource="pods")],
        "11m",
    ),
    Case(
        "CapstanOperatorTurnsFail",
        "a third fails",
        [
            series(Operator.TURNS, "0+20x60", **LEADER, outcome="ok"),
            series(Operator.TURNS, "0+10x60", **LEADER, outcome="error"),
        ],
        "40m",
        {"namespace": "capstan-system"},
        "33.33%",
    ),
    Case(
        "CapstanOperatorTurnsFail",
        "one in a hundred",
        [
            series(Operator.TURNS, "0+99x60", **LEADER, outcome="ok"),
            series(Operator.TURNS, "0+1x60", **LEADER, outcome="error"),
        ],
        "40m",
    ),
]
BY_NAME = {alert.name: alert for alert in ALERTS}


def filled(text: str, labels: dict[str, str], value: str) -> str:
    """An annotation as Prometheus fills it in."""
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda label: labels.get(label[1], ""), text)
    return re.sub(r"\{\{ \$value[^}]*\}\}", value, text)


def expected(alert: Alert, case: Case) -> list[dict[str, Any]]:
    if case.fires is None:
        return []
    words = {name: filled(text, case.fires, case.value) for name, text in alert.rule["annotations"].items()}
    return [{"exp_labels": {**case.fires, "severity": alert.severity}, "exp_annotations": words}]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.alert}: {case.what}" for case in CASES])
def test_an_alert_fires_when_it_should_and_only_then(case: Case, promtool: str, tmp_path: Path) -> None:
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in case.given],
                "alert_rule_test": [
                    {"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected(BY_NAME[case.alert], case)}
                ],
            }
        ],
    }
    file = tmp_path / "test.yaml"
    file.write_text(json.dumps(document))
    done = subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    assert {case.alert for case in CASES if case.fires is not None} == BY_NAME.keys()
    assert {case.alert for case in CASES if case.fires is None} == BY_NAME.keys()


def test_the_rules_are_valid(promtool: str) -> None:
    done = subprocess.run([promtool, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_an_error_ratio_that_nobody_records_cannot_be_alerted_on() -> None:
    with pytest.raises(ValueError, match="no error ratio is recorded over 4h"):
        rules.errors("4h")


def test_every_alert_leads_to_its_page_and_to_a_dashboard() -> None:
    anchors = {line[3:].lower() for line in (ROOT / rules.RUNBOOK).read_text().splitlines() if line.startswith("## ")}
    boards = {json.loads(path.read_text())["uid"] for path in (ROOT / "dashboards/generated").glob("*.json")}
    generated = yaml.safe_load(RULES.read_text())
    written = [rule for group in generated["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(written) == len(ALERTS)
    for rule in written:
        notes = rule["annotations"]
        page, _, anchor = notes["runbook_url"].partition("#")
        assert page == rules.RUNBOOK
        assert anchor in anchors
        assert re.split(r"[/?]", notes["dashboard_url"])[2] in boards
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert notes["summary"]
        assert notes["description"].endswith(".")
