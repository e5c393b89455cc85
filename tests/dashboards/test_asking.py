"""Asking a Prometheus what a dashboard asks, and writing values as a reader expects them."""

import pytest
from dashboards.ask import Line, NoAnswer, Prometheus, with_choices
from dashboards.drawn_panels import in_unit


def test_choices_replace_every_variable() -> None:
    expr = 'rate(x{namespace=~"$namespace", pod="${deployment}"}[$__rate_interval])'
    assert with_choices(expr, namespace="prod", deployment="chat", __rate_interval="15s") == (
        'rate(x{namespace=~"prod", pod="chat"}[15s])'
    )


def test_a_viewer_who_chose_nothing_sees_everything() -> None:
    assert with_choices('x{namespace=~"$namespace"}') == 'x{namespace=~".*"}'


def test_a_variable_that_nobody_offers_is_an_error() -> None:
    with pytest.raises(KeyError, match="cluster"):
        with_choices('x{cluster="$cluster"}')


def test_a_legend_takes_the_labels_of_its_line() -> None:
    assert Line({"slo_class": "batch"}, ()).called("{{slo_class}} p95{{absent}}") == "batch p95"


def test_a_server_that_does_not_answer_is_named() -> None:
    # Port 9 of this machine: nothing listens on the port for discarded traffic.
    with pytest.raises(NoAnswer, match=r"http://127\.0\.0\.1:9: "):
        Prometheus("http://127.0.0.1:9", timeout_s=1).at("up", 0)
    with pytest.raises(NoAnswer, match="no http address"):
        Prometheus("file:///etc").at("up", 0)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9534, "percentunit", "95.3 %"),
        (-19.0, "percentunit", "-1900 %"),
        (0.0421, "s", "42.1 ms"),
        (2.5, "s", "2.5 s"),
        (12.34, "reqps", "12.3/s"),
        (123456.0, "short", "123456"),
        (float("nan"), "s", "–"),
        (float("inf"), "short", "∞"),
    ],
)
def test_values_are_written_with_their_unit(value: float, unit: str, text: str) -> None:
    assert in_unit(value, unit) == text
