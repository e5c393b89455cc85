"""`build/bench/{cpu,gpu}.json`: a list of comparisons in one form, that several benches write to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

BUILD: Final = Path(__file__).parents[2] / "build" / "bench"


def comparison(case: str, ours: float, unit: str, peer: str, peer_value: float, ratio: float) -> dict[str, Any]:
    """One row. A ratio above 1 means that ours is better; against a ceiling it is the share that is reached."""
    return {
        "case": case,
        "ours": round(ours, 3),
        "unit": unit,
        "peer": peer,
        "peer_value": round(peer_value, 3),
        "ratio": round(ratio, 2),
    }


def keep(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows into the file. Of what it held, all stays that is about another case or another peer."""
    new = {(row["case"], row["peer"]) for row in rows}
    held = json.loads(path.read_text()) if path.exists() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    others = [row for row in held if (row["case"], row["peer"]) not in new]
    path.write_text(json.dumps([*others, *rows], indent=1) + "\n")
