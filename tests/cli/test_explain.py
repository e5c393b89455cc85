"""`capstan explain` tells the last changes, and decides them again."""

import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from capstan_api.v1alpha1 import parse
from capstan_cli import explain
from capstan_cli.errors import ChecksFailed, InputError
from capstan_cli.main import app
from capstan_operator.decide import Memory, Observation, decide
from capstan_operator.decide.scaling.replicas import ReplicasMemory
from capstan_operator.reconcile import Turn, record

NOW = 1_800_000_000.0
WEB = parse(
    {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceDeployment",
        "metadata": {"name": "web"},
        "spec": {
            "model": {"source": {"uri": "bundled://tiny"}},
            "slos": [{"name": "chat", "ttft": {"thresholdMilliseconds": 1000}}],
            "scaling": {"maxReplicas": 4},
        },
    }
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three turns, the second of which brings ten replicas down to four."""
    lines = []
    for i, wanted in enumerate((4, 10, 4)):
        memory = Memory(at=NOW + i - 1, replicas=ReplicasMemory(wanted=wanted))
        seen = Observation(at=NOW + i)
        decision = decide(WEB, seen, memory, NOW + i)
        turn = Turn(NOW + i, WEB, memory, seen, decision, decision.status)
        lines.append(json.dumps(record(turn)))
    path = tmp_path / "decisions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*arguments: Any) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["explain", *map(str, arguments)])
    return result.exit_code, result.output


def test_it_tells_what_changed_and_decides_it_again(log: Path) -> None:
    code, said = run(log, "--again")
    assert code == 0
    assert "ScaleDown  10 → 4" in said
    assert "maxReplicas is 4" in said
    assert "Decided again: the same." in said
    assert said.count("inputs ") == 1, "holds are not told"


def test_a_decision_that_comes_out_differently_is_told(log: Path) -> None:
    (turn,) = explain.changes(log, 5, None)
    turn["decision"]["changes"][0]["toValue"] = "5"
    with pytest.raises(ChecksFailed, match="comes out differently in: changes"):
        explain.again(turn)


def test_a_decision_of_another_version_is_not_made_again(log: Path) -> None:
    (turn,) = explain.changes(log, 5, None)
    turn["observation"]["of_the_future"] = 1
    with pytest.raises(InputError, match="made by another version of Capstan"):
        explain.again(turn)
    del turn["decision"]["changes"][0]["toValue"]
    with pytest.raises(InputError, match="made by another version of Capstan"):
        explain.drawn(turn)


def test_half_a_line_at_the_end_of_a_log_whose_writer_was_killed_is_passed_over(log: Path) -> None:
    whole = explain.changes(log, 5, None)
    log.write_text(log.read_text() + '{"now": 1800000003.0, "deploy')
    assert explain.changes(log, 5, None) == whole


def test_one_is_found_by_the_hash_of_its_inputs(log: Path) -> None:
    (turn,) = explain.changes(log, 5, None)
    wanted = turn["decision"]["changes"][0]["inputsHash"]
    assert explain.changes(log, 5, wanted) == [turn]
    with pytest.raises(InputError, match="no decision with the inputs 0000"):
        explain.changes(log, 5, "0000")


@pytest.mark.parametrize("content", [b"no json", b"[1]", b'{"a": 1}', b'{"decision": 5}', b"\x80\xff"])
def test_what_is_no_decision_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content + b"\n")
    with pytest.raises(InputError, match="decision log"):
        explain.changes(path, 5, None)
    with pytest.raises(InputError, match="cannot be read"):
        explain.changes(tmp_path / "missing", 5, None)


def test_predictions_are_drawn_as_a_table() -> None:
    decision = {
        "changes": [],
        "margin": 1.24,
        "said": {"inputsHash": "abc"},
        "predictions": [
            {
                "replicas": n,
                "attainment": {"chat": 0.9 + n / 100, "batch": 1.0},
                "cost_per_hour": 2.5 * n,
                "ttft": {"chat": {"median_s": 0.25 / n, "tail_s": 4.5 / n, "percentile": 99.0}},
                "tpot": {"chat": {"median_s": 0.02, "tail_s": 0.04, "percentile": 95.0}},
            }
            for n in (3, 4, 5)
        ],
    }
    page = StringIO()
    Console(width=80, file=page).print(explain.drawn({"decision": decision}))
    lines = page.getvalue().splitlines()
    four = next(line for line in lines if "94.00 %" in line).split("  ")
    assert [cell.strip() for cell in four if cell.strip()] == [
        "4",
        "chat",
        "94.00 %",
        "62 ms / 1.1 s",
        "20 ms / 40 ms",
        "10.00",
    ]
    assert any("batch" in line and "-" in line for line in lines), "what is not known is not made up"
    text = " ".join(lines)
    assert "margin of 24 %" in text
