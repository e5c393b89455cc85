"""The few kinds of panel that the dashboards are made of.

Knows how things look; what they show comes from `queries`. A panel without a sentence of
description, a unit or a legend cannot be made here.
"""

import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import heatmap as heatmap_model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE: Final = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
WIDTH: Final = 24
GOOD, WARN, BAD, CALM = "green", "orange", "red", "blue"

Panel = timeseries.Panel | stat.Panel | heatmap.Panel | table.Panel
P = TypeVar("P", timeseries.Panel, stat.Panel, heatmap.Panel, table.Panel)


@dataclass(frozen=True)
class Query:
    """One line, or one family of lines, of a panel. `legend` may use `{{label}}`; a dashed one is a bound."""

    expr: str
    legend: str
    dashed: bool = False


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    stacked: bool = False,
    mark: float | None = None,
) -> timeseries.Panel:
    """Values over time. `mark` draws a line that a reader compares with; dashed queries are bounds and not filled."""
    panel = (
        _framed(timeseries.Panel(), title, description, queries, width, 8)
        .unit(unit)
        .line_width(1.5)
        .fill_opacity(25 if stacked else 5)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    )
    if unit != "percentunit":
        panel.min(0)
    if stacked:
        panel.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    if mark is not None:
        panel.thresholds(_steps((None, "transparent"), (mark, BAD))).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(common_model.GraphTresholdsStyleMode.DASHED)
        )
    for index, query in enumerate(queries):
        if query.dashed:
            panel.override_by_query(
                _letter(index),
                [
                    model.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [6, 6]}),
                    model.DynamicConfigValue("custom.fillOpacity", 0),
                ],
            )
    return panel


def number(
    title: str, description: str, unit: str, query: Query, *steps: tuple[float | None, str], width: int = 4
) -> stat.Panel:
    """The newest value, large. `steps` are (from, colour), the first from None."""
    return (
        _framed(stat.Panel(), title, description, [query], width, 4)
        .unit(unit)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(common_model.BigValueGraphMode.AREA)
        .color_mode(common_model.BigValueColorMode.VALUE)
        .thresholds(_steps(*(steps or ((None, CALM),))))
    )


def heat(title: str, description: str, unit: str, expr: str, width: int = 8) -> heatmap.Panel:
    """A histogram over time, as many colours as there are requests."""
    panel = _framed(heatmap.Panel(), title, description, [], width, 8)
    panel.with_target(_target(Query(expr, "{{le}}"), 0).format(PromQueryFormat.HEATMAP))
    return (
        panel.calculate(False)
        .y_axis(heatmap.YAxisConfig().unit(unit))
        .color(
            heatmap.HeatmapColorOptions()
            .mode(heatmap_model.HeatmapColorMode.SCHEME)
            .scheme("Oranges")
            .scale(heatmap_model.HeatmapColorScale.EXPONENTIAL)
            .exponent(0.5)
            .steps(64)
        )
    )


@dataclass(frozen=True)
class Column:
    """One column of a table: an instant query that gives one value per row."""

    title: str
    unit: str
    expr: str


def rows_of(
    title: str, description: str, key: Sequence[str], *columns: Column, link: str | None = None, width: int = WIDTH
) -> table.Panel:
    """One row per combination of the labels `key`; `link` makes the last of them lead to a dashboard."""
    panel = _framed(table.Panel(), title, description, [], width, 6)
    for index, column in enumerate(columns):
        panel.with_target(_target(Query(column.expr, ""), index).format(PromQueryFormat.TABLE).instant())
    names = {f"Value #{_letter(i)}": column.title for i, column in enumerate(columns)}
    if len(columns) == 1:
        names = {"Value": columns[0].title}
    panel.with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        model.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": {"Time": True},
                "indexByName": {name: i for i, name in enumerate([*key, *names])},
                "renameByName": names,
            },
        )
    )
    for column in columns:
        panel.override_by_name(column.title, [model.DynamicConfigValue("unit", column.unit)])
    if link is not None:
        target = [{"title": "Open the dashboard of this deployment", "url": link}]
        panel.override_by_name(key[-1], [model.DynamicConfigValue("links", target)])
    return panel


def _framed(panel: P, title: str, description: str, queries: Iterable[Query], width: int, height: int) -> P:
    panel.title(title).description(description).datasource(DATASOURCE).span(width).height(height)
    for index, query in enumerate(queries):
        panel.with_target(_target(query, index))
    return panel


def _target(query: Query, index: int) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(_letter(index))


def _letter(index: int) -> str:
    return string.ascii_uppercase[index]


def _steps(*steps: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=value, color=colour) for value, colour in steps])
    )
