"""Stop strings end a text wherever the borders of its pieces lie."""

from hypothesis import given
from hypothesis import strategies as st

from capstan_engine.text.stop_strings import StopMatch, StopStrings

ALPHABET = "ab\n"
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=4)


def shown(stops: list[str], pieces: list[str], *, include: bool = False) -> tuple[str, str | None]:
    """What a client sees of a text in pieces, and the stop string that ended it."""
    matcher = StopStrings(stops, include=include)
    text = ""
    for piece in pieces:
        found = matcher.push(piece)
        if isinstance(found, StopMatch):
            return text + found.text, found.stop
        text += found
    return text + matcher.flush(), None


def first_end(stops: list[str], text: str) -> tuple[int, int, str] | None:
    """The plain definition: of all occurrences the one that ends first, and of those the one that starts first."""
    ends = [
        (start + len(stop), start, stop) for stop in stops for start in range(len(text)) if text.startswith(stop, start)
    ]
    return min(ends, default=None)


@given(STOPS, st.lists(st.text(ALPHABET, max_size=5), max_size=8), st.booleans())
def test_every_cut_into_characters_shows_the_same_text(stops: list[str], pieces: list[str], include: bool) -> None:
    text = "".join(pieces)
    end = first_end(stops, text)
    expected = (text, None) if end is None else (text[: end[0] if include else end[1]], end[2])
    assert shown(stops, list(text), include=include) == expected


@given(STOPS, st.lists(st.text(ALPHABET, max_size=5), max_size=8))
def test_borders_of_pieces_do_not_matter(stops: list[str], pieces: list[str]) -> None:
    assert shown(stops, pieces) == shown(stops, list("".join(pieces)))


@given(STOPS, st.lists(st.text(ALPHABET, min_size=1, max_size=3), max_size=8))
def test_only_a_possible_beginning_is_held_back(stops: list[str], pieces: list[str]) -> None:
    matcher = StopStrings(stops)
    seen = visible = ""
    for piece in pieces:
        seen += piece
        found = matcher.push(piece)
        if isinstance(found, StopMatch):
            return
        visible += found
        held = seen[len(visible) :]
        assert seen == visible + held
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_without_stops_text_passes_through() -> None:
    assert shown([], ["a", "b"]) == ("ab", None)
