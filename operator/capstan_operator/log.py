"""The operator's log: one JSON object a line for machines, or plain text for people.

Knows nothing of what is logged. Prompts and completions never come near this process; keys and tokens are never
handed to a logger.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal


def set_up(level: str, style: Literal["json", "text"]) -> None:
    """Have everything that is logged go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if style == "json" else logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # It logs each event that it hands over; what matters to people, we say ourselves.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # Of its end we say ourselves what people need to know; why a request was refused comes from another of its parts.
    logging.getLogger("kopf._core").setLevel(logging.CRITICAL)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
