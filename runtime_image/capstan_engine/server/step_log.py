"""The recent steps in memory for the admin port, and all of them as CSV for calibration."""

import asyncio
import csv
from collections import deque
from pathlib import Path
from typing import Final

from capstan_engine.messages import StepSample, Update

COLUMNS: Final = StepSample.__struct_fields__
_FLUSH_S: Final = 1.0


class StepRing:
    """The last `size` steps. Observer of updates."""

    def __init__(self, size: int = 4096) -> None:
        self._steps: deque[StepSample] = deque(maxlen=size)

    def on_update(self, update: Update) -> None:
        self._steps.extend(update.steps)

    def after(self, number: int, limit: int) -> list[StepSample]:
        """The oldest `limit` steps that follow step `number`."""
        return [step for step in self._steps if step.number > number][:limit]


class StepLog:
    """Writes one CSV line per step: buffered, and flushed each second so that a reader is never far behind."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="")
        self._writer = csv.writer(self._file)
        self._writer.writerow(COLUMNS)
        self._file.flush()

    def on_update(self, update: Update) -> None:
        self._writer.writerows([getattr(step, column) for column in COLUMNS] for step in update.steps)

    async def keep_flushed(self) -> None:
        """Runs until cancelled, then closes the file."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_S)
                self._file.flush()
        finally:
            self._file.close()
