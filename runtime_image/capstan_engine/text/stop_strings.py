"""Stop strings in a text that arrives in pieces.

Knows only characters: where the pieces end (token borders) must not matter. Two rules give that. The match that *ends*
first wins, and among those the one that starts first; and of the text without a match, exactly the longest tail that
could still grow into a stop string is held back.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """`stop` is the string that was found; `text` is what may still be shown of the piece and of what was held."""

    stop: str
    text: str


class StopStrings:
    """Finds the first of `stops` in pushed text. With `include`, the stop string itself is shown too."""

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._longest = max(map(len, stops), default=0)
        # At most 16 strings of 256 characters, so the set stays small and a push costs one lookup per possible length.
        self._beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        self._held = ""

    def push(self, piece: str) -> str | StopMatch:
        """The text that may be shown now, or the match that ends everything."""
        if not self._stops:
            return piece
        text = self._held + piece
        found = min(
            ((start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0), default=None
        )
        if found is not None:
            end, start, stop = found
            self._held = ""
            return StopMatch(stop, text[: end if self._include else start])
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                self._held = text[-length:]
                return text[:-length]
        self._held = ""
        return text

    def flush(self) -> str:
        """What is still held, at the end of the text: it has not become a stop string."""
        held, self._held = self._held, ""
        return held
