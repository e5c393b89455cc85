"""What a request says outside its prompt: when it arrived, its SLO class, its deadline, its name for the model.

Knows the headers (`capstan_api.names`), nothing of prompts or sampling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Final
from uuid import uuid4

from capstan_api import names
from capstan_api.engine_args import SloClass
from capstan_engine.server.errors import ApiError

_MAX_MS: Final = 24 * 3600 * 1000


@dataclass(frozen=True)
class Call:
    """One request to generate. Times are monotonic seconds, `created` is wall time as the API wants it."""

    id: str
    model: str
    created: int
    slo_class: SloClass
    arrival: float
    waited_s: float
    """What it had waited at the gateway before it arrived; ages it in the queue, but is not the engine's latency."""
    deadline: float | None


class ModelNames:
    """The names that this server answers to: served names, and aliases that also choose an SLO class."""

    def __init__(self, served: Sequence[str], slo_classes: Sequence[SloClass]) -> None:
        self.served = tuple(served)
        self._classes = tuple(slo_classes)
        self._by_header = {c.header_value or c.name: c for c in slo_classes} | {c.name: c for c in slo_classes}
        self._by_alias = {c.model_alias: c for c in slo_classes if c.model_alias is not None}
        self.all = tuple(dict.fromkeys((*self.served, *self._by_alias)))

    def open(self, prefix: str, model: str | None, headers: Mapping[str, str], arrival: float) -> Call:
        """The call behind a request. Raises `ApiError` 404 for an unknown model, 400 for a senseless header."""
        model = self.check(model)
        deadline_ms = _milliseconds(headers, names.HEADER_DEADLINE_MS)
        return Call(
            id=f"{prefix}-{uuid4().hex}",
            model=model,
            created=int(time()),
            slo_class=self._slo_class(model, headers),
            arrival=arrival,
            waited_s=(_milliseconds(headers, names.HEADER_WAITED_MS) or 0) / 1000,
            deadline=None if deadline_ms is None else arrival + deadline_ms / 1000,
        )

    def check(self, model: str | None) -> str:
        """The name to answer under; the first served one when the request has none."""
        if model is None:
            return self.served[0]
        if model not in self.all:
            message = f"The model does not exist here. Served: {', '.join(self.all)}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return model

    def _slo_class(self, model: str, headers: Mapping[str, str]) -> SloClass:
        header = headers.get(names.HEADER_SLO_CLASS)
        found = self._by_header.get(header) if header is not None else None
        # While an edit of the classes is rolled out, the gateway and this engine do not know the same ones. What the
        # gateway has let in is served.
        if header is None or (found is None and names.HEADER_WAITED_MS in headers):
            return self._by_alias.get(model, self._classes[0])
        if found is None:
            known = ", ".join(c.header_value or c.name for c in self._classes)
            raise ApiError.invalid(
                names.HEADER_SLO_CLASS, f"Unknown SLO class in {names.HEADER_SLO_CLASS}. Known: {known}."
            )
        return found


def _milliseconds(headers: Mapping[str, str], name: str) -> int | None:
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) <= _MAX_MS):
        raise ApiError.invalid(name, f"The header {name} must be whole milliseconds from 0 to {_MAX_MS}.")
    return int(text)
