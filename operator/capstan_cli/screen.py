"""Where `capstan up` shows its frames: a live view on a terminal, plain lines anywhere else."""

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.live import Live

from capstan_cli.frames import Frame
from capstan_cli.plain import PlainLog
from capstan_cli.view import render


class Screen(Protocol):
    """Opened before the first frame, closed after the last; `say` is for sentences that are no part of a frame."""

    def show(self, frames: Sequence[Frame]) -> None: ...

    def say(self, sentence: str) -> None: ...

    def close(self) -> None: ...


class LiveScreen:
    """Redraws in place. The newest sentence stays at the bottom of the view."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._note = ""
        self._frames: Sequence[Frame] = ()
        # Redrawn by us on every turn: a thread of rich's own would tear the view apart.
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="ellipsis")
        self._live.start()

    def show(self, frames: Sequence[Frame]) -> None:
        self._frames = frames
        self._live.update(render(frames, min(self._console.width, 110), self._note), refresh=True)

    def say(self, sentence: str) -> None:
        self._note = sentence
        if self._frames:
            self.show(self._frames)
        else:
            self._console.print(sentence, highlight=False)

    def close(self) -> None:
        self._live.stop()


class PlainScreen:
    """Prints each line once, at once."""

    def __init__(self) -> None:
        self._log = PlainLog()

    def show(self, frames: Sequence[Frame]) -> None:
        for line in self._log.lines(frames[-1]):
            print(line, flush=True)

    def say(self, sentence: str) -> None:
        print(sentence, flush=True)

    def close(self) -> None:
        """Nothing is held open."""


def choose(console: Console, *, plain: bool) -> Screen:
    return PlainScreen() if plain else LiveScreen(console)
