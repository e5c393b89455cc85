"""Why the law decided as it did: the last changes in a decision log with what other fleets would have meant.

A line of the log holds everything that a decision was made from, so that any of them can be made again. The surprising
idea: that is also the check of the law's purity. A decision that comes out differently a second time is a defect.
"""

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from capstan_cli.errors import ChecksFailed, InputError
from capstan_operator.reconcile import replay

_NOT_COMPARED = {"memory", "status"}
_OF_ANOTHER_VERSION = "this decision was made by another version of Capstan; ask that one"


def changes(path: Path, last: int, inputs_hash: str | None) -> list[dict[str, Any]]:
    """The newest `last` turns of the log that changed something, or those with this hash of their inputs, oldest first.

    Raises `InputError` for what is not a decision log.
    """
    found: deque[dict[str, Any]] = deque(maxlen=last)
    for record in _records(path):
        said = (record.get("decision") or {}).get("changes", [])
        if any(inputs_hash in (None, change.get("inputsHash")) for change in said):
            found.append(record)
    if inputs_hash is not None and not found:
        raise InputError(f"{path} has no decision with the inputs {inputs_hash}")
    return list(found)


def _records(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with path.open() as log:
            for number, line in enumerate(log, 1):
                try:
                    record = json.loads(line)
                except json.JSONDecodeError as error:
                    if number > 1 and not line.endswith("\n"):
                        # Whoever wrote it was killed while it did.
                        return
                    raise InputError(f"{path}:{number} is not a turn of a decision log: {error}") from None
                if not isinstance(record, dict) or not isinstance(record.get("decision", 0), dict | None):
                    raise InputError(f"{path}:{number} is not a turn of a decision log")
                yield record
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; capstan up writes it to its --run-dir") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a decision log: {error}") from None


def again(record: dict[str, Any]) -> None:
    """Decide it again; raises `ChecksFailed` when anything but the same comes out, `InputError` when nothing can."""
    try:
        decision = replay(record)
    except (KeyError, ValidationError):
        raise InputError(_OF_ANOTHER_VERSION) from None
    decided = json.loads(decision.to_json(_NOT_COMPARED))
    if decided != record["decision"]:
        differs = sorted(key for key in decided if decided[key] != record["decision"].get(key))
        raise ChecksFailed(f"decided again, it comes out differently in: {', '.join(differs)}")


def drawn(record: dict[str, Any]) -> RenderableType:
    """One turn for people: what changed, why, and what one replica fewer or more would have meant.

    Raises `InputError` for what this version does not know.
    """
    try:
        return Group(*_parts(record["decision"]))
    except (KeyError, TypeError):
        raise InputError(_OF_ANOTHER_VERSION) from None


def _parts(decision: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for change in decision["changes"]:
        head = f"{change['time']}  {change['action']}  {change['fromValue']} → {change['toValue']}"
        parts += [Text(head, style="bold"), Text(f"  {change['reason']}: {change['message']}")]
    if decision["predictions"]:
        parts.append(_table(decision))
    parts.append(Text(f"  inputs {decision['said']['inputsHash']}", style="dim"))
    return parts


def _table(decision: dict[str, Any]) -> Table:
    """A line for each number of replicas and each class."""
    predictions = decision["predictions"]
    # Without a price in the resource there is nothing to compare.
    is_priced = any(each["cost_per_hour"] for each in predictions)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("Replicas", justify="right")
    table.add_column("Class")
    for heading in ("Met", "TTFT", "TPOT", *(["Cost/h"] if is_priced else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in predictions:
        for number, (name, share) in enumerate(each["attainment"].items()):
            is_first = number == 0
            cells = (
                str(each["replicas"]) if is_first else "",
                name,
                f"{100 * share:.2f} %",
                _latency(each["ttft"].get(name)),
                _latency(each["tpot"].get(name)),
            )
            price = f"{each['cost_per_hour']:.2f}" if is_first else ""
            table.add_row(*cells, *([price] if is_priced else []))
    margin = f"of the look-back's requests, with a margin of {100 * (decision['margin'] - 1):.0f} %"
    table.caption = f"{margin};\nlatencies: median / the objective's percentile"
    return table


def _latency(quantiles: dict[str, float] | None) -> str:
    """Median and tail."""
    return "-" if quantiles is None else f"{_time(quantiles['median_s'])} / {_time(quantiles['tail_s'])}"


def _time(seconds: float) -> str:
    """In seconds from one second on."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
