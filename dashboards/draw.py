"""A dashboard as a picture, drawn from a real Prometheus' answers to the dashboard's own queries.

    python -m dashboards.draw overview --prometheus http://127.0.0.1:9090 --minutes 15 --output docs/slo-overview.png

Knows the generated JSON and nothing of what it shows: places, titles, units, queries and legends are read from there,
so a picture cannot show what the dashboard does not.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter

from dashboards.ask import Line, NoAnswer, Prometheus, with_choices
from dashboards.drawn_panels import Panel, draw

GENERATED: Final = Path(__file__).parent / "generated"
_COLUMNS: Final = 24
_CELL_IN: Final = (0.6, 0.32)
_HEADLINE_IN: Final = 0.5
_TICKS_S: Final = (10, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)
_STYLE: Final[dict[Any, Any]] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#ececec",
    "legend.frameon": False,
    "legend.fontsize": 7,
}


@dataclass(frozen=True)
class Mark:
    """A moment of an annotation, in epoch seconds, and what is written about it."""

    moment: float
    text: str


class Drawing:
    """One dashboard over one span of time (epoch seconds)."""

    def __init__(self, source: Prometheus, start: float, end: float, **choices: str) -> None:
        self._source = source
        self._start, self._end = start, end
        self._choices = {"__range": f"{max(int(end - start), 1)}s", **choices}

    def write(self, document: Mapping[str, Any], path: Path) -> None:
        """A PNG. Raises `NoAnswer`."""
        panels: Sequence[Panel] = document["panels"]
        marks = self.marks(document)
        height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
        footer_in = 0.2 * (len(marks) + 1) if marks else 0.0
        with mpl.rc_context(_STYLE):
            width_in, height_in = _COLUMNS * _CELL_IN[0], height * _CELL_IN[1] + _HEADLINE_IN + footer_in
            figure = Figure(figsize=(width_in, height_in))
            top, bottom = 1 - _HEADLINE_IN / height_in, footer_in / height_in
            grid = GridSpec(height, _COLUMNS, figure, left=0.01, right=0.985, top=top, bottom=bottom, hspace=0)
            figure.text(0.02, 1 - 0.15 / height_in, document["title"], va="top", fontsize=14, fontweight="bold")
            for panel in panels:
                self._draw(figure, grid, panel, marks)
            words = "\n".join(f"{n}  {_clock(mark.moment)}  {mark.text}" for n, mark in enumerate(marks, 1))
            figure.text(0.02, bottom, words, va="top", linespacing=1.6)
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.15)

    def marks(self, document: Mapping[str, Any]) -> list[Mark]:
        """What the dashboard's annotations mark within the span, each once, in order of time."""
        found = set()
        for annotation in document.get("annotations", {}).get("list", []):
            for line in self.lines(annotation):
                text = f"{line.called(annotation['titleFormat'])}: {line.called(annotation['textFormat'])}"
                found |= {Mark(value / 1000, text) for _, value in line.points}
        return sorted((mark for mark in found if self._start <= mark.moment <= self._end), key=lambda m: m.moment)

    def lines(self, target: Mapping[str, Any]) -> list[Line]:
        """What Prometheus answers to one query of a panel."""
        expr = with_choices(target["expr"], **self._choices)
        if target.get("instant"):
            return self._source.at(expr, self._end)
        step_s = max((self._end - self._start) / 300, 1.0)
        return self._source.over(expr, self._start, self._end, step_s)

    def _draw(self, figure: Figure, grid: GridSpec, panel: Panel, marks: Sequence[Mark]) -> None:
        at = panel["gridPos"]
        if panel["type"] == "row":
            axes = figure.add_subplot(grid[at["y"], :])
            axes.set_axis_off()
            axes.text(0, 0, panel["title"], fontsize=10, fontweight="bold", color="#444444")
            return
        # Inside its place: a title above, an axis and a legend below, ticks on the left.
        below = 2 if panel["type"] == "timeseries" else 1
        axes = figure.add_subplot(grid[at["y"] + 1 : at["y"] + at["h"] - below, at["x"] + 1 : at["x"] + at["w"]])
        axes.set_title(panel["title"])
        draw(axes, panel, self.lines)
        if panel["type"] in ("timeseries", "heatmap"):
            axes.set_xlim(self._start, self._end)
            step_s = next((step for step in _TICKS_S if (self._end - self._start) / step <= 6), _TICKS_S[-1])
            axes.set_xticks(list(range(_up(self._start, step_s), int(self._end) + 1, step_s)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda at, _: _clock(at)))
            for n, mark in enumerate(marks, 1):
                axes.axvline(mark.moment, color="#555555", linewidth=0.8)
                axes.annotate(
                    str(n),
                    (mark.moment, 1),
                    xycoords=axes.get_xaxis_transform(),
                    xytext=(2, -1),
                    textcoords="offset points",
                    va="top",
                    fontsize=7,
                    color="#555555",
                )


def _clock(moment: float) -> str:
    """The time of day in UTC."""
    return time.strftime("%H:%M:%S", time.gmtime(moment))


def _up(moment: float, step_s: int) -> int:
    return math.ceil(moment / step_s) * step_s


def main() -> None:
    """Draw one dashboard; exits with a sentence when Prometheus does not answer."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.draw", description=main.__doc__)
    parser.add_argument("dashboard", choices=sorted(path.stem for path in GENERATED.glob("*.json")))
    parser.add_argument("--prometheus", required=True, metavar="URL", help="address of the server, without a path")
    parser.add_argument("--output", required=True, type=Path, metavar="PNG")
    parser.add_argument("--minutes", type=float, default=60, help="span, up to now (60)")
    parser.add_argument("--choose", action="append", default=[], metavar="VARIABLE=VALUE", help="may be repeated")
    options = parser.parse_args()
    end = time.time()
    choices = dict(choice.split("=", 1) for choice in options.choose)
    document = json.loads((GENERATED / f"{options.dashboard}.json").read_text("utf-8"))
    try:
        drawing = Drawing(Prometheus(options.prometheus.rstrip("/")), end - options.minutes * 60, end, **choices)
        drawing.write(document, options.output)
    except NoAnswer as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
