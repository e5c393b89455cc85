"""What is worked out of a resource once and kept while it lives: resources are frozen, and every turn asks the same.

Knows no resource in particular. The surprising idea: a frozen object is recognized by its identity, because comparing
or hashing it would cost as much as working the answer out again.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from weakref import ref

_Subject = TypeVar("_Subject")
_P = ParamSpec("_P")
_R = TypeVar("_R")
# Between values and named ones, so that none is taken for the other.
_NAMED: Final = object()


def lifelong(function: Callable[Concatenate[_Subject, _P], _R]) -> Callable[Concatenate[_Subject, _P], _R]:
    """A pure function of a frozen subject and of hashable values, that is called once for each of them.

    What it has answered is forgotten when the subject ends, before another one can have its identity.
    """
    answers: dict[int, dict[Any, _R]] = {}
    subjects: dict[int, ref[Any]] = {}

    def forget(key: int) -> None:
        del answers[key], subjects[key]

    @wraps(function)
    def answer(subject: _Subject, /, *values: _P.args, **named: _P.kwargs) -> _R:
        key = id(subject)
        asked = (*values, _NAMED, *named.items()) if named else values
        if key not in answers:
            answers[key] = {}
            subjects[key] = ref(subject, lambda _: forget(key))
        known = answers[key]
        if asked in known:
            return known[asked]
        found = known[asked] = function(subject, *values, **named)
        return found

    return answer
