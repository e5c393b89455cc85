"""What is worked out of a resource once and kept while it lives: resources are frozen, and every turn asks the same.

Knows no resource in particular. The surprising idea: a frozen object is recognized by its identity, because comparing
or hashing it would cost as much as working the answer out again.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, TypeVar, TypeVarTuple
from weakref import ref

_Subject = TypeVar("_Subject")
_Values = TypeVarTuple("_Values")
_R = TypeVar("_R")


def lifelong(
    function: Callable[[_Subject, *_Values], _R],
) -> Callable[[_Subject, *_Values], _R]:
    """A pure function of a frozen subject and of hashable values by place, that is called once for each of them.

    What it has answered is forgotten when the subject ends, before another one can have its identity.
    """
    answers: dict[int, Any] = {}
    subjects: dict[int, ref[Any]] = {}

    def met(key: int, subject: _Subject) -> None:
        def forget(_: ref[Any]) -> None:
            del subjects[key]
            answers.pop(key, None)

        subjects[key] = ref(subject, forget)

    # Most are asked about nothing but the subject, and a turn asks fifty times.
    @wraps(function)
    def only(subject: _Subject, /) -> _R:
        key = id(subject)
        if key not in answers:
            met(key, subject)
            answers[key] = function(subject)  # type: ignore[call-arg]
        found: _R = answers[key]
        return found

    @wraps(function)
    def answer(subject: _Subject, /, *values: *_Values) -> _R:
        key = id(subject)
        if key not in answers:
            met(key, subject)
            answers[key] = {}
        known: dict[Any, _R] = answers[key]
        if values not in known:
            known[values] = function(subject, *values)
        return known[values]

    return only if len(signature(function).parameters) == 1 else answer  # type: ignore[return-value]
