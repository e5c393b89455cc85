"""The generated dashboards: whole, stable, and asking only for what the parts expose."""

import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboards.ask import with_choices

from capstan_api.metrics import Engine, Gateway, Kind, Operator, catalogue
from dashboards import queries

DASHBOARDS = ("deployment", "operator", "overview")
Document = dict[str, Any]
EXPOSED = {metric.name: metric for part in (Engine, Gateway, Operator) for metric in catalogue(part)}


def exprs(document: Document) -> Iterator[str]:
    """Every query of a dashboard: panels', annotations' and variables'."""
    for panel in document["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (annotation["expr"] for annotation in document.get("annotations", {}).get("list", []))


def series_of(expr: str) -> set[str]:
    return set(re.findall(r"capstan_[a-z_]+", expr))


def metric_of(name: str) -> str:
    """The catalogue's name of a series: a histogram is read by its parts."""
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return base if base in EXPOSED and EXPOSED[base].kind is Kind.HISTOGRAM else name


def test_all_dashboards_are_generated(documents: dict[str, Document]) -> None:
    assert tuple(documents) == DASHBOARDS


@pytest.mark.parametrize("name", DASHBOARDS)
class TestDashboard:
    def test_links_to_it_stay_valid(self, documents: dict[str, Document], name: str) -> None:
        assert documents[name]["uid"] == f"capstan-{name}"

    def test_it_can_be_pointed_at_any_prometheus(self, documents: dict[str, Document], name: str) -> None:
        document = documents[name]
        kinds = {variable["name"]: variable["type"] for variable in document["templating"]["list"]}
        assert kinds["datasource"] == "datasource"
        asked = [*document["panels"], *document.get("annotations", {}).get("list", [])]
        sources = {entry["datasource"]["uid"] for entry in asked if entry.get("type") != "row"}
        assert sources == {"${datasource}"}
        assert "__inputs" not in document

    def test_panels_have_ids_of_their_own(self, documents: dict[str, Document], name: str) -> None:
        ids = [panel["id"] for panel in documents[name]["panels"]]
        assert len(set(ids)) == len(ids) > 5

    def test_panels_stand_inside_the_grid_and_beside_each_other(
        self, documents: dict[str, Document], name: str
    ) -> None:
        places = [(panel["title"], panel["gridPos"]) for panel in documents[name]["panels"]]
        assert [title for title, at in places if at["x"] < 0 or at["x"] + at["w"] > 24 or at["h"] < 1] == []
        assert [(a, b) for (a, p), (b, q) in combinations(places, 2) if overlap(p, q)] == []

    def test_every_panel_explains_itself_and_has_a_unit(self, documents: dict[str, Document], name: str) -> None:
        panels = [panel for panel in documents[name]["panels"] if panel["type"] != "row"]
        assert [panel["title"] for panel in panels if len(panel.get("description", "")) < 20] == []
        drawn = [panel for panel in panels if panel["type"] in ("timeseries", "stat")]
        assert [panel["title"] for panel in drawn if not panel["fieldConfig"]["defaults"].get("unit")] == []

    def test_every_series_is_one_that_something_exposes(self, documents: dict[str, Document], name: str) -> None:
        used = {series for expr in exprs(documents[name]) for series in series_of(expr)}
        assert {metric_of(series) for series in used} - EXPOSED.keys() == set()
        assert used

    def test_every_label_is_one_that_the_series_has(self, documents: dict[str, Document], name: str) -> None:
        for expr in exprs(documents[name]):
            for series, matchers in re.findall(r"(capstan_[a-z_]+)\{([^}]*)\}", expr):
                asked = set(re.findall(r"([a-z_]+)=~?\"", matchers))
                assert asked <= {*EXPOSED[metric_of(series)].labels, *queries.TARGET_LABELS}, expr

    def test_every_variable_in_a_query_can_be_chosen(self, documents: dict[str, Document], name: str) -> None:
        offered = {variable["name"] for variable in documents[name]["templating"]["list"]}
        used = {variable for expr in exprs(documents[name]) for variable in re.findall(r"\$(?!__)([a-z_]+)", expr)}
        assert used <= offered

    def test_every_query_is_promql(
        self, documents: dict[str, Document], name: str, promtool: str, tmp_path: Path
    ) -> None:
        rules = [
            {"record": f"q{number}", "expr": with_choices(expr)} for number, expr in enumerate(exprs(documents[name]))
        ]
        file = tmp_path / "queries.yaml"
        file.write_text(yaml.safe_dump({"groups": [{"name": name, "rules": rules}]}))
        done = subprocess.run([promtool, "check", "rules", str(file)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout


def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    return not (beside or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"])


def test_a_decision_is_marked_at_its_own_time_and_with_its_sentence(documents: dict[str, Document]) -> None:
    for name in ("deployment", "overview"):
        (annotation,) = documents[name]["annotations"]["list"]
        assert Operator.DECISION_INFO.name in annotation["expr"]
        # Grafana takes the moment from the value, in milliseconds; the catalogue gives seconds.
        assert annotation["useValueForTime"]
        assert annotation["expr"].endswith("* 1000")
        assert annotation["textFormat"] == "{{message}}"
        assert "message" in Operator.DECISION_INFO.labels


def test_the_metrics_of_every_part_are_looked_at(documents: dict[str, Document]) -> None:
    """A series that no panel shows is either missing here or not worth exposing."""
    shown = {metric_of(s) for document in documents.values() for expr in exprs(document) for s in series_of(expr)}
    beside = {
        # Rules rest on the gateway's exact counters; the engines' own serve the operator and the `vllm:` names.
        Engine.SLO_TOTAL,
        Engine.SLO_GOOD,
        Engine.TTFT,
        Engine.TPOT,
        Engine.INTER_TOKEN,
        Engine.E2E,
        Engine.PROMPT_LENGTH,
        Engine.OUTPUT_LENGTH,
        Engine.STEPS,
        Gateway.PROMPT_TOKENS,
        Gateway.OUTPUT_TOKENS,
        Gateway.REPLICAS,
        # Attainment is shown from the counters, over a window that the reader knows.
        Operator.ATTAINMENT,
        # In every query of an annotation.
        Operator.DECISION_INFO,
    }
    assert EXPOSED.keys() - shown - {metric.name for metric in beside} == set()


class TestQueries:
    def test_a_label_that_the_series_does_not_have_is_refused(self) -> None:
        with pytest.raises(ValueError, match="has no label phase; it has slo_class"):
            queries.series(Gateway.REQUESTS, phase="decode")
        with pytest.raises(ValueError, match="cannot be grouped by phase"):
            queries.rate(Gateway.REQUESTS, ("phase",))

    def test_a_histogram_is_read_by_its_parts_and_nothing_else_is(self) -> None:
        with pytest.raises(ValueError, match="only a histogram"):
            queries.series(Gateway.TTFT)
        with pytest.raises(ValueError, match="only a histogram"):
            queries.series(Gateway.REQUESTS, "_bucket")

    def test_a_tilde_makes_a_regular_expression(self) -> None:
        assert queries.series(Gateway.HELD, namespace="~a|b", pod="c") == (
            'capstan_gateway_requests_held{namespace=~"a|b", pod="c"}'
        )
