"""The deployments that a dashboard looks at, and what any such choice can show: service levels, replicas, lines.

*One deployment* and *SLO overview* ask the same questions of one and of many, so a question is asked here once. The
surprising idea: what tells many from one is no branch but the words that stand before each legend.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capstan_api.metrics import Metric, Operator
from dashboards import queries as q
from dashboards.panels import BAD, GOOD, WARN, Panel, Query, lines, number

Read = Callable[..., str]
"""How a metric is read, given labels to group by and to select with: `rate`, `total`, `highest` of `queries`."""


@dataclass(frozen=True)
class Scope:
    """Series that `where` selects, grouped by the labels `among`; `who` stands before what a legend says of them."""

    where: Mapping[str, str]
    among: tuple[str, ...] = q.DEPLOYMENT
    who: str = ""

    def each(
        self,
        title: str,
        description: str,
        unit: str,
        read: Read,
        metric: Metric,
        label: str,
        *,
        stacked: bool = False,
        mark: float | None = None,
    ) -> Panel:
        """One line for each value of `label`."""
        query = Query(read(metric, (*self.among, label), **self.where), f"{{{{{label}}}}}")
        return lines(title, description, unit, query, stacked=stacked, mark=mark)

    def lowest_attainment(self, title: str) -> Panel:
        return number(
            title,
            "Share of good requests in the last hour, of the class that fares worst.",
            "percentunit",
            Query(f"min({q.good_ratio('1h', **self.where)})", "attainment"),
            (None, BAD),
            (0.9, WARN),
            (0.95, GOOD),
        )

    def least_budget(self, title: str) -> Panel:
        return number(
            title,
            "Error budget left over the SLO's own window, of the class that has least; negative when overdrawn.",
            "percentunit",
            Query(f"min({q.highest(Operator.BUDGET, q.CLASS, **self.where)})", "budget"),
            (None, BAD),
            (0, WARN),
            (0.25, GOOD),
        )

    def replicas_ready(self) -> Panel:
        return number(
            "Replicas ready",
            "Replicas that take requests.",
            "short",
            Query(f"sum({q.highest(Operator.READY_REPLICAS, q.DEPLOYMENT, **self.where)})", "ready"),
        )

    def hours(self, title: str, metric: Metric, of: str) -> Panel:
        return number(
            title,
            f"Running time of all {of} within the range shown.",
            "h",
            Query(q.increase(metric, (), "$__range", **self.where), "hours"),
        )

    def replica_hours(self) -> Panel:
        return self.hours("Replica-hours", Operator.REPLICA_HOURS, "replicas")

    def attainment(self) -> Panel:
        return lines(
            "Attainment",
            "Share of requests that met every threshold of their class, over the last 5 minutes, as clients saw it; "
            "dashes are the objective.",
            "percentunit",
            Query(q.good_ratio("5m", **self.where), self._class()),
            Query(q.highest(Operator.OBJECTIVE, q.CLASS, **self.where), self._class("objective"), dashed=True),
        )

    def burn_rate(self) -> Panel:
        return lines(
            "Burn rate",
            "How many times faster than sustainable the error budget is spent, over 5 minutes and over the last hour.",
            "short",
            Query(q.burn_rate("5m", **self.where), self._class("5m")),
            Query(q.burn_rate("1h", **self.where), self._class("1h"), dashed=True),
            mark=1,
        )

    def budget_left(self) -> Panel:
        return lines(
            "Error budget left",
            "What is left of the misses that the objective allows over the SLO's window; below 0 it is overdrawn.",
            "percentunit",
            Query(q.highest(Operator.BUDGET, q.CLASS, **self.where), self._class()),
            mark=0,
        )

    def _class(self, what: str = "") -> str:
        return " ".join(filter(None, (self.who, "{{slo_class}}", what)))
