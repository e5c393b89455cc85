"""Answers that are kept while what was asked about lives."""

import gc

from worlds import deployment

from capstan_operator.decide import render
from capstan_operator.decide.lifelong import lifelong, lifelong_by


class Subject:
    def __init__(self, name: str) -> None:
        self.name = name


def test_a_question_is_answered_once_for_each_subject_and_each_value() -> None:
    asked = []

    @lifelong_by
    def greeting(subject: Subject, word: str) -> str:
        asked.append((subject.name, word))
        return f"{word} {subject.name}"

    a, b = Subject("a"), Subject("b")
    for _ in range(2):
        assert greeting(a, "hello") == "hello a"
        assert greeting(a, "bye") == "bye a"
        assert greeting(b, "hello") == "hello b"

    assert asked == [("a", "hello"), ("a", "bye"), ("b", "hello")]


def test_nobody_inherits_the_answers_of_one_that_has_ended() -> None:
    @lifelong
    def name(subject: Subject) -> str:
        return subject.name

    # The memory of one is given to the next, and with it the identity.
    for number in range(1000):
        assert name(Subject(str(number))) == str(number)


def test_what_is_kept_ends_with_its_subject() -> None:
    kept = Subject("the answer")

    @lifelong
    def answer(subject: Subject) -> Subject:
        return Subject(subject.name)

    first = answer(kept)
    assert answer(kept) is first
    del first
    del kept
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, Subject) and each.name == "the answer"]


def test_a_changed_resource_is_rendered_anew() -> None:
    of = deployment()
    other = deployment(model={"source": {"uri": "bundled://tiny"}, "maxModelLength": 2048})
    assert render.revision(of) == render.revision(of)
    assert render.revision(of) != render.revision(other)
    assert render.revision(of) == render.revision(deployment()), "equal resources have equal revisions"
