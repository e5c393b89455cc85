"""Which ready replica gets a request: the one with the least outstanding work, as the gateway counts it.

    work = prompt tokens of requests without a first token + TOKENS_PER_REQUEST · requests

That is what `capstan_gateway.routing` weighs replicas by for a prompt that none of them knows. Which of them knows a
prompt is not imitated: prefix hits are the workload's. Here equals go in order, there by a hash of the prompt.

The surprising idea: nobody tells it of first tokens and ends. It reads them in the book when the next request comes.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from operator import attrgetter
from typing import Protocol, TypeVar

from capstan_gateway.routing import TOKENS_PER_REQUEST
from capstan_sim.book import Book


class Rule(StrEnum):
    """What counts as work."""

    GATEWAY = "gateway"
    OUTSTANDING = "outstanding"
    """Requests alone: the protocol of the published figures that ours stand beside. Their engine serves in order of
    arrival, so engines are told no thresholds under it."""

    def told(self, ttft_s: Iterable[float]) -> tuple[float, ...]:
        """What engines are told of these thresholds."""
        return () if self is Rule.OUTSTANDING else tuple(ttft_s)


class Server(Protocol):
    """Somebody who gets requests."""

    work: int


_Server = TypeVar("_Server", bound=Server)
_work = attrgetter("work")


class Router:
    """Keeps account of what each server was given and has not answered."""

    def __init__(self, book: Book, rule: Rule = Rule.GATEWAY) -> None:
        self._book, self._counts_tokens = book, rule is Rule.GATEWAY
        self._server: list[Server | None] = [None] * len(book)
        """Who was given the request last."""
        self._num_first = self._num_done = 0
        """Entries of the book that have been read."""

    def choose(self, ready: Sequence[_Server]) -> _Server | None:
        """The one with the least work now, the first among equals."""
        self._settle()
        return min(ready, key=_work, default=None)

    def give(self, request: int, server: Server) -> None:
        """`server`, the one chosen last, has the request from now on."""
        server.work += self._of_request() + self._of_prompt(request)
        self._server[request] = server

    def _settle(self) -> None:
        book = self._book
        for request in book.first_requests[self._num_first :]:
            self._take(request, self._of_prompt(request))
        for request in book.done_requests[self._num_done :]:
            self._take(request, self._of_request())
        self._num_first, self._num_done = len(book.first_requests), len(book.done_requests)

    def _take(self, request: int, work: int) -> None:
        server = self._server[request]
        assert server is not None, "what is answered was given to somebody"
        server.work -= work

    def _of_request(self) -> int:
        return TOKENS_PER_REQUEST if self._counts_tokens else 1

    def _of_prompt(self, request: int) -> int:
        return self._book.prompt[request] - self._book.cached[request] if self._counts_tokens else 0
