"""The reports of a simulation as tables that fit 80 columns: policies side by side, their classes, and why they missed.

Knows only the plain data of reports.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

Reports = Mapping[str, Mapping[str, Any]]
"""By policy."""


def tables(reports: Reports) -> Iterator[Table]:
    """In all, by class, and by cause where anything was missed."""
    yield _in_all(reports)
    yield _by_class(reports)
    if any(figures["violations"] for figures in reports.values()):
        yield _by_cause(reports)


def document(reports: Reports) -> Mapping[str, Any]:
    """What is written as JSON: one report as it is, several under `policies`."""
    return next(iter(reports.values())) if len(reports) == 1 else {"policies": reports}


def _in_all(reports: Reports) -> Table:
    has_cost = any("cost" in figures for figures in reports.values())
    headings = ["attained", "GPU-h", *(["cost"] if has_cost else []), "events", "flips", "limits", "bad min"]
    table = _table(["policy"], headings)
    for name, figures in reports.items():
        row = [_percent(figures["attainment_percent"]), f"{figures['gpu_hours']:.2f}"]
        row += [f"{figures['cost']:.2f}"] if has_cost else []
        row += [str(figures[key]) for key in ("scale_events", "flips", "limit_changes", "violation_minutes")]
        table.add_row(name, *row)
    return table


def _by_class(reports: Reports) -> Table:
    table = _table(["policy", "class"], ["requests", "attained", "TTFT p95", "TPOT p95"])
    for name, of_class, figures in _classes(reports):
        latencies = (_milliseconds(figures[kind].get("p95")) for kind in ("ttft_ms", "tpot_ms"))
        table.add_row(name, of_class, str(figures["requests"]), _percent(figures["attainment_percent"]), *latencies)
    return table


def _by_cause(reports: Reports) -> Table:
    met = {cause: None for figures in reports.values() for cause in figures["violations"]}
    table = _table(["policy", "class"], [cause.replace("_", " ") for cause in met])
    table.title, table.title_justify, table.title_style = "missed by", "left", "bold"
    for name, of_class, figures in _classes(reports):
        if figures["violations"]:
            table.add_row(name, of_class, *(str(figures["violations"].get(cause, "")) for cause in met))
    return table


def _classes(reports: Reports) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Policy, class and figures of every class that any request belongs to."""
    for name, report in reports.items():
        for of_class, figures in report["classes"].items():
            if figures["requests"]:
                yield name, of_class, figures


def _table(names: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in figures:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _percent(share: float) -> str:
    return f"{share:.2f} %"


def _milliseconds(latency: float | None) -> str:
    return "-" if latency is None else f"{latency:.0f} ms"
