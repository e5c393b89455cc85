"""PromQL, written from the catalogue's metrics.

Every selector is checked when it is built: a label must be one that the metric has, or one that scraping adds.
Engines and gateways do not know whose they are, so their `namespace`, `deployment` and `pod` come from the target (the
PodMonitor relabels); the operator's series carry `namespace` and `deployment` themselves and are scraped with
`honorLabels`. Either way the same three labels select and group.

The surprising idea: dashboards and rules share `burn_rate` and `bad_ratio`, so that what an alert fires on is what a
panel shows, and dashboards work where nobody installed the rules.
"""

from collections.abc import Sequence
from typing import Final

from capstan_api.metrics import Engine, Gateway, Kind, Metric, Operator
from capstan_api.status import ConditionType

TARGET_LABELS: Final = ("namespace", "deployment", "pod")
DEPLOYMENT: Final = ("namespace", "deployment")
CLASS: Final = (*DEPLOYMENT, "slo_class")
# Grafana's own: at least four scrapes, so that a rate always has its two points.
RATE_WINDOW: Final = "$__rate_interval"


def series(metric: Metric, suffix: str = "", **where: str) -> str:
    """A selector. A value that begins with `~` is a regular expression. Raises `ValueError` for a foreign label."""
    unknown = [label for label in where if label not in (*metric.labels, *TARGET_LABELS)]
    if unknown:
        raise ValueError(
            f"{metric.name} has no label {', '.join(unknown)}; it has {', '.join(metric.labels) or 'none'}"
        )
    if bool(suffix) != (metric.kind is Kind.HISTOGRAM):
        raise ValueError(f"{metric.name} is a {metric.kind}: only a histogram is read by _bucket, _sum or _count")
    matchers = [
        f'{name}=~"{value[1:]}"' if value.startswith("~") else f'{name}="{value}"' for name, value in where.items()
    ]
    return f"{metric.name}{suffix}" + (f"{{{', '.join(matchers)}}}" if matchers else "")


def _over(function: str, metric: Metric, by: Sequence[str], body: str) -> str:
    unknown = [label for label in by if label not in (*metric.labels, *TARGET_LABELS, "le")]
    if unknown:
        raise ValueError(f"{metric.name} cannot be grouped by {', '.join(unknown)}")
    return f"{function} by ({', '.join(by)}) ({body})" if by else f"{function}({body})"


def total(metric: Metric, by: Sequence[str], **where: str) -> str:
    """The sum of a gauge over everything but `by`."""
    return _over("sum", metric, by, series(metric, **where))


def highest(metric: Metric, by: Sequence[str], **where: str) -> str:
    """The largest value of a gauge; also what makes one series of a fact that several processes state."""
    return _over("max", metric, by, series(metric, **where))


def highest_over(metric: Metric, by: Sequence[str], window: str, **where: str) -> str:
    """The largest value that a gauge had within the window."""
    return _over("max", metric, by, f"max_over_time({series(metric, **where)}[{window}])")


def lowest(metric: Metric, by: Sequence[str], **where: str) -> str:
    return _over("min", metric, by, series(metric, **where))


def rate(metric: Metric, by: Sequence[str], window: str = RATE_WINDOW, suffix: str = "", **where: str) -> str:
    """Events, or seconds, per second."""
    return _over("sum", metric, by, f"rate({series(metric, suffix, **where)}[{window}])")


def increase(metric: Metric, by: Sequence[str], window: str, **where: str) -> str:
    """Events in the window."""
    return _over("sum", metric, by, f"increase({series(metric, **where)}[{window}])")


def quantile(q: float, metric: Metric, by: Sequence[str], window: str = RATE_WINDOW, **where: str) -> str:
    """The quantile of a histogram, over all processes of a group together."""
    return f"histogram_quantile({q:g}, {rate(metric, ('le', *by), window, '_bucket', **where)})"


def buckets(metric: Metric, window: str = RATE_WINDOW, **where: str) -> str:
    """A histogram's buckets for a heat map."""
    return rate(metric, ("le",), window, "_bucket", **where)


def share(metric: Metric, by: Sequence[str], window: str, **of_all: str) -> str:
    """Which part of a counter's events are those of the labels `of_all`, over the window. No events: no value."""
    return f"{rate(metric, by, window, **of_all)} / {rate(metric, by, window)}"


def good_ratio(window: str, **where: str) -> str:
    """Share of the requests that met every threshold, per class, as clients saw it. No requests: no value."""
    good = rate(Gateway.SLO_GOOD, CLASS, window, objective="all", **where)
    return f"{good} / {rate(Gateway.SLO_TOTAL, CLASS, window, **where)}"


def bad_ratio(window: str, **where: str) -> str:
    """Share of the requests that missed a threshold or failed."""
    return f"1 - {good_ratio(window, **where)}"


def burn_rate(window: str, **where: str) -> str:
    """How many times faster than sustainable the error budget is spent; 1 spends it exactly over the SLO's window."""
    return f"({bad_ratio(window, **where)}) / (1 - {highest(Operator.OBJECTIVE, CLASS, **where)})"


def threshold(objective: str, **where: str) -> str:
    """The declared threshold in seconds, per class; `objective` is ttft or tpot. Every engine states it."""
    return highest(Engine.SLO_TARGET, CLASS, objective=objective, **where)


def against_threshold(metric: Metric, objective: str, **where: str) -> str:
    """The p95 of a latency as a share of its class's threshold: 1 is the threshold, whatever class it is."""
    return f"{quantile(0.95, metric, CLASS, **where)} / {threshold(objective, **where)}"


def in_condition(kind: ConditionType, status: str, **where: str) -> str:
    """1 for each deployment whose condition has this status (a regular expression when it begins with `~`)."""
    return f"{highest(Operator.CONDITION, DEPLOYMENT, type=kind, status=status, **where)} == 1"
