"""Reads an event stream as it passes: when tokens came, how many there were, whether it ended as it should.

Knows no connection and no clock. The surprising idea: it also holds back the unfinished rest of an event until that is
complete. A client can do nothing with half an event, and if the replica dies in the middle of one, what the client
has is still a valid stream to which an error event can be added.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

_END_OF_EVENT: Final = b"\n\n"
_DELTA_FIELDS: Final = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call")


@dataclass(frozen=True)
class Usage:
    """Token counts of a finished request; None where they are not known."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class StreamMeter:
    """One stream. Feed it chunks in order with the time at which each came (monotonic seconds)."""

    def __init__(self) -> None:
        self.first_token: float | None = None
        self.last_token: float | None = None
        self.done = False
        """The stream's own end marker has passed."""
        self.failed = False
        """The replica itself has reported an error in the stream."""
        self.usage = Usage()
        self._rest = b""
        self._num_content_events = 0
        self._choices: set[object] = set()

    def feed(self, chunk: bytes, now: float) -> bytes:
        """Take a chunk and return what of the stream is now complete, for the client."""
        whole, end, self._rest = (self._rest + chunk).rpartition(_END_OF_EVENT)
        for event in whole.split(_END_OF_EVENT) if end else ():
            self._read(event, now)
        return whole + end

    @property
    def num_output_tokens(self) -> int:
        """As the replica counts them where it says so, otherwise the events with content."""
        reported = self.usage.completion_tokens
        return self._num_content_events if reported is None else reported

    @property
    def tpot_s(self) -> float | None:
        """Mean time between a choice's tokens; None with fewer than two of them."""
        gaps = self.num_output_tokens / max(1, len(self._choices)) - 1
        if self.first_token is None or self.last_token is None or gaps <= 0:
            return None
        return (self.last_token - self.first_token) / gaps

    def _read(self, event: bytes, now: float) -> None:
        data = b"".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
        if data == b"[DONE]":
            self.done = True
            return
        try:
            document = orjson.loads(data)
        except orjson.JSONDecodeError:
            # Comments and foreign events pass unread.
            return
        if not isinstance(document, dict):
            return
        self.failed = self.failed or "error" in document
        if (usage := usage_of(document)) is not None:
            self.usage = usage
        choices = document.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and _has_content(choice):
                self._choices.add(choice.get("index"))
                self._num_content_events += 1
                if self.first_token is None:
                    self.first_token = now
                self.last_token = now


def usage_of(document: dict[str, Any]) -> Usage | None:
    """The `usage` object of a response or chunk, None when it has none."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Usage(prompt if isinstance(prompt, int) else None, completion if isinstance(completion, int) else None)


def _has_content(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    return bool(choice.get("text")) or (isinstance(delta, dict) and any(delta.get(name) for name in _DELTA_FIELDS))
