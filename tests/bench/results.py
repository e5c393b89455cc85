"""`build/bench/{cpu,gpu}.json`: a list of comparisons in one form, that several benches write to."""

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

BUILD: Final = Path(__file__).parents[2] / "build" / "bench"

Row = dict[str, Any]
"""Of a table, and of the file."""


class Case(NamedTuple):
    """What is measured together."""

    name: str
    rows: Callable[[], Iterable[Row]]


def comparison(case: str, ours: float, unit: str, peer: str, peer_value: float, ratio: float) -> Row:
    """One row. A ratio above 1 means that ours is better; against a ceiling it is the share that is reached."""
    return {
        "case": case,
        "ours": round(ours, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 3),
        "ratio": round(ratio, 2),
    }


def measure(cases: Iterable[Case], path: Path, *, prefix: str = "") -> list[str]:
    """Print every row and put it into the file as soon as it is there; returns the names of cases that failed.

    One that fails is told with its traceback, and the next has its turn: an hour with the machine is hard to get.
    """
    started, failed = time.monotonic(), []
    for case in cases:
        try:
            for row in case.rows():
                named = {**row, "case": prefix + row["case"]}
                keep(path, [named])
                print(f"{time.monotonic() - started:5.0f} s  {_line(named)}", flush=True)
        except Exception:
            failed.append(prefix + case.name)
            print(f"FAILED {failed[-1]}\n{traceback.format_exc()}", flush=True)
    return failed


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Put rows into the file. Of what it held, all stays that is about another case or another peer."""
    new = {(row["case"], row["peer"]) for row in rows}
    held = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [row for row in held if (row["case"], row["peer"]) not in new]
    path.write_text(json.dumps([*others, *rows], indent=1) + "\n")


def _line(row: Row) -> str:
    return (
        f"{row['case']:58} {row['ours']:12,.1f} {row['unit']:13} {row['peer']:32} {row['peer_value']:12,.1f} "
        f"{row['ratio']:6.2f}"
    )
