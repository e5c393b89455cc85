"""The report of a replay: its schema, its checks, and that the picture is drawn."""

import json
from dataclasses import replace

import pytest

from capstan_cli import plot, report
from capstan_cli.load import declared
from capstan_cli.measure import Outcome, Result, summarise
from capstan_cli.report import Run

START = 1_790_000_000.0


def outcomes(number=60, last=Result.COMPLETED):
    return [
        Outcome(
            index=i,
            slo_class="batch" if i % 5 == 0 else "interactive",
            planned_s=float(i),
            sent_s=i + 0.001,
            ended_s=i + 2.0,
            result=last if i == number - 1 else Result.COMPLETED,
            first_token_s=i + 0.3,
            last_token_s=i + 2.0,
            output_tokens=50,
            replica="quickstart-abc-0",
        )
        for i in range(number)
    ]


@pytest.fixture
def run(script, deployment):
    sent = outcomes()
    summary = summarise(sent, declared(deployment.spec))
    return Run(deployment, script, sent, summary, {"trace": "t.csv"}, {"replica": "one processor"}, START, 130.0)


def test_the_report_holds_every_promised_field(run):
    document = json.loads(json.dumps(report.document(run), allow_nan=False))
    assert document["requests"]["accepted"] == 60
    assert {"completed", "lost", "truncated", "rejected", "failed"} <= document["requests"].keys()
    interactive = document["slos"][0]
    assert interactive["name"] == "interactive"
    assert interactive["ttft_p95_ms"] == pytest.approx(299, abs=1)
    assert interactive["tpot_p95_ms"] == pytest.approx(1700 / 49, abs=0.1)
    assert interactive["attainment_percent"] == 100.0
    assert document["limits"]["changes"] == 1
    assert (document["replicas"]["min"], document["replicas"]["max"]) == (1, 2)
    assert document["replicas"]["events"] == [
        {"second": 40.0, "from": 1, "to": 2},
        {"second": 90.0, "from": 2, "to": 1},
    ]
    assert document["wall_seconds"] == 130.0
    assert [d["action"] for d in document["decisions"]] == ["SetLimits", "ScaleUp", "ScaleDown"]
    assert document["versions"]["python"]
    assert document["processors"] == {"replica": "one processor"}
    assert len(document["timeline"]) == len(run.frames)


def test_a_run_that_shows_everything_passes_its_checks(run):
    assert all(report.checks(run).values())


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        (
            "limits_moved",
            lambda run: replace(run, frames=[replace(f, limits=run.frames[0].limits) for f in run.frames]),
        ),
        ("replicas_rose", lambda run: replace(run, frames=[replace(f, replicas_ready=1) for f in run.frames])),
        ("replicas_fell", lambda run: replace(run, frames=run.frames[:60])),
        *(
            (
                "no_accepted_request_lost_or_truncated",
                lambda run, result=result: replace(run, summary=summarise(outcomes(last=result), {})),
            )
            for result in (Result.LOST, Result.TRUNCATED, Result.FAILED)
        ),
        ("no_accepted_request_lost_or_truncated", lambda run: replace(run, summary=summarise([], {}))),
    ],
)
def test_a_run_that_does_not_show_something_fails_that_check(run, broken, change):
    assert report.checks(change(run))[broken] is False


def test_a_refused_request_is_reported_and_does_not_fail_the_run(run):
    refused = replace(run, summary=summarise(outcomes(last=Result.REJECTED), {}))
    assert report.document(refused)["requests"]["rejected"] == 1
    assert all(report.checks(refused).values())


def test_replicas_that_came_and_went_before_the_load_prove_nothing(run):
    late = replace(run, load_started_at=START + 100)
    assert report.checks(late)["replicas_rose"] is False


@pytest.mark.parametrize("with_run", [True, False])
def test_the_picture_is_drawn(run, tmp_path, with_run):
    path = tmp_path / "deep" / "report.png"
    plot.draw(path, run.outcomes, declared(run.deployment.spec), run if with_run else None)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000


def test_a_run_without_a_single_answer_can_still_be_drawn(tmp_path, run):
    none = replace(run, outcomes=[], frames=run.frames[:1])
    plot.draw(tmp_path / "x.png", [], {}, none)
    assert (tmp_path / "x.png").exists()
