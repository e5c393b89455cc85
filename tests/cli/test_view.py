"""What the live view and the plain lines say about a scripted run."""

from io import StringIO

import pytest
from rich.console import Console

from capstan_cli.plain import PlainLog, summary
from capstan_cli.view import bar, render, sparkline


def drawn(frames, width, note=""):
    page = StringIO()
    Console(width=width, file=page, color_system=None).print(render(frames, width, note))
    return page.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_everything_a_person_asks_for_is_on_the_view_at_every_width(script, width):
    text = drawn(script[:50], width)
    for wanted in (
        "quickstart · capstan-tiny · 00:49",
        "612 / 1000 ms",
        "66 / 60 ms",
        "97.8 %",
        "– / 15000 ms",
        "1.9 requests/s, 210 tokens/s, 3 waiting",
        "384 tokens",
        "of 512",
        "16 sequences",
        "2 ready, 2 wanted",
        "5 running, 3 waiting",
        "KV 34 %",
        "One replica is enough",
        "TTFT p95 812 ms > 800 ms with 14 requests waiting",
        "token budget 512 → 384",
        "http://127.0.0.1:8000/v1",
        "curl http://127.0.0.1:8000/v1/chat/completions",
    ):
        assert wanted in text, wanted
    assert max(len(line) for line in text.splitlines()) == width


def test_a_starting_replica_shows_for_how_long_and_a_crashed_one_its_restarts(at_second):
    assert "Starting  00:08" in drawn([at_second(38)], 100)
    assert "Ready ↻1" in drawn([at_second(45)], 100)


def test_the_view_stands_before_anything_is_known(at_second):
    empty = at_second(
        0,
        classes=(),
        replicas=(),
        limits=None,
        envelope=None,
        requests_per_s=None,
        now=None,
        endpoint=None,
        decisions=(),
    )
    assert "not open yet" in drawn([empty], 80)


def test_a_failed_turn_and_a_note_are_shown(at_second):
    text = drawn([at_second(3, error="the gateway did not answer")], 80, note="Stopping")
    assert "The last turn failed: the gateway did not answer" in text
    assert "Stopping" in text


def test_square_brackets_in_a_message_are_text_and_not_markup(at_second):
    assert "[red]odd[/red]" in drawn([at_second(3, error="[red]odd[/red]")], 80)


@pytest.mark.parametrize(
    ("share", "style"), [(0.5, "green"), (0.8, "green"), (0.9, "yellow"), (1.0, "yellow"), (1.01, "red")]
)
def test_a_bar_is_coloured_by_how_near_its_bound_is(share, style):
    assert style in {bar(share).style, *(span.style for span in bar(share).spans)}


def test_a_bar_never_overflows():
    assert bar(40.0).plain == bar(1.0).plain
    assert len(bar(-1.0).plain) == len(bar(1.0).plain)


def test_a_sparkline_shows_the_newest_and_leaves_gaps_open():
    assert sparkline([1, 2, None, 8], 3) == "▃ █"
    assert sparkline([0.0, 0.0], 5) == "▁▁"
    assert sparkline([], 5) == ""


def test_plain_lines_name_each_decision_and_change_once(script):
    log = PlainLog()
    text = "\n".join(line for frame in script for line in log.lines(frame))
    assert text.count("decision SetLimits: TPOT p95 61 ms > 50 ms: token budget 512 → 384") == 1
    assert text.count("decision ScaleUp") == 1
    assert text.count("replica quickstart-abc-1 Starting") == 1
    assert text.count("replica quickstart-abc-1 gone") == 1
    assert text.count("endpoint http://127.0.0.1:8000/v1") == 1
    assert text.index("decision SetLimits") < text.index("decision ScaleUp") < text.index("decision ScaleDown")


def test_plain_mode_is_not_a_flood(script):
    log = PlainLog(interval_s=5)
    steady = [line for frame in script[:20] for line in log.lines(frame) if " | " in line]
    assert len(steady) == 4


def test_a_plain_line_marks_what_is_beyond_its_threshold(at_second):
    line = summary(at_second(50))
    assert "ttft p95 612/1000 ms" in line
    assert "tpot p95 66/60 ! ms" in line
    assert "batch" not in line


def test_a_repeated_failure_is_said_once(at_second):
    log = PlainLog()
    lines = [line for s in range(3) for line in log.lines(at_second(s, error="no gateway"))]
    assert sum("turn failed" in line for line in lines) == 1
