"""How the token of a row of logits is chosen, in numbers: what the runner asks of a backend's sampler."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Penalties(NamedTuple):
    """Against tokens that a request has seen: each one once by `repetition`, those of its output by the others."""

    repetition: float
    """Divides logits above zero and multiplies those below; 1 changes nothing."""
    presence: float
    """Taken off once."""
    frequency: float
    """Taken off for each time."""
    prompt: Sequence[int]
    output: Sequence[int]
    """The last one may be -1 - i for token i of those that the step before drew: they may be on the device only."""


class Draw(NamedTuple):
    """One row's rules, in the order in which they are applied: penalties, bias, temperature, top-k, top-p, min-p."""

    temperature: float
    """0 is greedy."""
    top_k: int
    """0 keeps all."""
    top_p: float
    min_p: float
    seed: int
    position: int
    """Of the token in the request's output. It and the seed decide about the random number, and nothing else does."""
    penalties: Penalties | None
    bias: Mapping[int, float]
    """Added to the logits of these tokens; -inf forbids one. Ids outside the vocabulary name no token."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def changes_logits(self) -> bool:
        return self.penalties is not None or bool(self.bias)
