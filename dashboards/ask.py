"""Ask a Prometheus what a dashboard asks: the same queries, with the viewer's choices put in.

Grafana does this in the browser; here it serves the pictures of the README and the test that every panel has data.
"""

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

# What a viewer who chose nothing sees; `.*` is what All stands for.
CHOICES: Final[Mapping[str, str]] = {
    "namespace": ".*",
    "deployment": ".*",
    "__rate_interval": "1m",
    "__range": "1h",
}


class NoAnswer(Exception):
    """Prometheus cannot be reached or refuses the query; the text names the query and the reason."""


@dataclass(frozen=True)
class Line:
    """One series of an answer: its labels, and (epoch seconds, value) in order of time."""

    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]

    def called(self, legend: str) -> str:
        """The legend with this line's labels put in."""
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda label: self.labels.get(label[1], ""), legend)


def with_choices(expr: str, **choices: str) -> str:
    """The query with every `$variable` replaced. Raises `KeyError` for one that nobody chose."""
    chosen = {**CHOICES, **choices}
    return re.sub(r"\$\{?(\w+)\}?", lambda variable: chosen[variable[1]], expr)


@dataclass(frozen=True)
class Prometheus:
    """One server, by its address without a path."""

    url: str
    timeout_s: float = 30.0

    def over(self, expr: str, start: float, end: float, step_s: float) -> list[Line]:
        """Values every `step_s` from `start` to `end`, both epoch seconds. Raises `NoAnswer`."""
        found = self._ask("query_range", query=expr, start=start, end=end, step=step_s)
        return [Line(series["metric"], _points(series["values"])) for series in found]

    def at(self, expr: str, moment: float) -> list[Line]:
        """Values at one moment. Raises `NoAnswer`."""
        return [
            Line(series["metric"], _points([series["value"]])) for series in self._ask("query", query=expr, time=moment)
        ]

    def _ask(self, kind: str, **arguments: str | float) -> list[dict[str, Any]]:
        address = f"{self.url}/api/v1/{kind}?{urllib.parse.urlencode(arguments)}"
        if not address.startswith(("http://", "https://")):
            raise NoAnswer(f"{self.url} is no http address")
        try:
            with urllib.request.urlopen(address, timeout=self.timeout_s) as response:  # noqa: S310 - checked above
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise NoAnswer(f"{arguments['query']}: {json.load(error).get('error', error)}") from None
        except (OSError, ValueError) as error:
            raise NoAnswer(f"{self.url}: {error}") from None
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def _points(values: list[list[Any]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(at), float(value)) for at, value in values)
