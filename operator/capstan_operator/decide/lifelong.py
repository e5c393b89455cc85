"""What is worked out of a resource once and kept while it lives: resources are frozen, and every turn asks the same.

Knows no resource in particular. The surprising idea: a frozen object is recognized by its identity, because comparing
or hashing it would cost as much as working the answer out again.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple
from weakref import ref

_Subject = TypeVar("_Subject")
_Values = TypeVarTuple("_Values")
_R = TypeVar("_R")


def lifelong(function: Callable[[_Subject], _R]) -> Callable[[_Subject], _R]:
    """A pure function of a frozen subject that is called once for each.

    What it has answered is forgotten when the subject ends, before another one can have its identity.
    """
    answers: dict[int, _R] = {}
    subjects: dict[int, ref[Any]] = {}

    def forget(key: int) -> None:
        del answers[key], subjects[key]

    @wraps(function)
    def answer(subject: _Subject, /) -> _R:
        key = id(subject)
        if key not in answers:
            answers[key] = function(subject)
            subjects[key] = ref(subject, lambda _: forget(key))
        return answers[key]

    return answer


def lifelong_by(function: Callable[[_Subject, *_Values], _R]) -> Callable[[_Subject, *_Values], _R]:
    """The same for a function of hashable values beside: it is called once for each of them."""

    @lifelong
    def answers(_: _Subject) -> dict[tuple[*_Values], _R]:
        return {}

    @wraps(function)
    def answer(subject: _Subject, /, *values: *_Values) -> _R:
        known = answers(subject)
        if values not in known:
            known[values] = function(subject, *values)
        return known[values]

    return answer
