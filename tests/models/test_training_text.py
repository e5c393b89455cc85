"""From documentation to training text: pages, dictionaries, questions and the held-out split."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.conversations import MAX_ANSWER_CHARS, answer, conversations, question
from models.corpus import is_held_out, prose, samples
from models.dictionary import read_dictionary
from models.document import Block, Document, Section
from models.packages import PACKAGES, CorpusError, Package, fetch
from models.pages import read_page

PAGE = """<html><head><title>Views - Manual</title><style>p {}</style></head><body>
<div class="sphinxsidebar"><div>Navigation <div>nested</div></div> more</div>
<h1>5.2. Views<a class="headerlink" href="#x">¶</a></h1>
<p>A <em>view</em> is a stored\n   query&mdash;nothing more.</p>
<ul><li><p>It holds no rows.</p></li><li>It can be dropped.</li></ul>
<pre>CREATE VIEW v
  AS SELECT 1;</pre>
<table><tr><td>left out</td></tr></table>
<dl><dt>materialize(name)</dt><dd><p>Stores the rows of a view.</p></dd></dl>
</body></html>"""


@pytest.fixture
def page(tmp_path: Path) -> Document:
    path = tmp_path / "views.html"
    path.write_text(PAGE, encoding="utf-8")
    document = read_page(path, "PostgreSQL")
    assert document is not None
    return document


def test_a_page_becomes_sections_without_navigation_numbers_or_tables(page: Document) -> None:
    assert page.title == "Views"
    assert page.sections == [
        Section(
            "Views",
            False,
            [
                Block("text", "A view is a stored query-nothing more."),
                Block("item", "It holds no rows."),
                Block("item", "It can be dropped."),
                Block("code", "CREATE VIEW v\n  AS SELECT 1;"),
            ],
        ),
        Section("materialize(name)", True, [Block("text", "Stores the rows of a view.")]),
    ]


def test_prose_keeps_headings_items_and_code(page: Document) -> None:
    assert prose(page) == (
        "# Views\n\nA view is a stored query-nothing more.\n\n- It holds no rows.\n\n- It can be dropped.\n\n"
        "    CREATE VIEW v\n      AS SELECT 1;\n\n## materialize(name)\n\nStores the rows of a view.\n"
    )


def test_a_page_without_text_is_no_document(tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text("<html><body><h1>Index</h1><table><tr><td>a</td></tr></table></body></html>")
    assert read_page(path, "Git") is None


def test_a_dictionary_entry_names_what_it_defines(tmp_path: Path) -> None:
    entry = (
        "Stack\n     \n        <programming> (LIFO) A {data structure} for storing items which are to be\n"
        "        accessed in last-in first-out order.\n\n        (1995-04-05)\n"
    )
    (tmp_path / "toy.dict.dz").write_bytes(gzip.compress(entry.encode()))
    # In base 64 with the alphabet of the format, "Ch" is 2 * 64 + 33 = 161.
    assert len(entry) == 161
    (tmp_path / "toy.index").write_text("00-database-short\tA\tA\nstack\tA\tCh\n")
    (document,) = read_dictionary(tmp_path / "toy.index")
    assert document.title == "Stack"
    assert [block.text for block in document.sections[0].blocks] == [
        "Stack (LIFO) is a data structure for storing items which are to be accessed in last-in first-out order."
    ]


def section(heading: str, text: str = "x" * 100, is_term: bool = False) -> Section:
    return Section(heading, is_term, [Block("text", text)])


@pytest.mark.parametrize(
    ("asked_about", "fits"),
    [
        (section("Why is the server slow?"), lambda asked: asked == "Why is the server slow?"),
        (section("How to build"), lambda asked: asked == "How to build?"),
        (section("Creating a Table"), lambda asked: "creating a Table" in asked),
        (
            section("os.path.join(path, *paths)", is_term=True),
            lambda asked: "os.path.join" in asked and "(" not in asked,
        ),
        (section("See also"), lambda asked: asked == ""),
        (section("a heading of far too many words to be the name of any subject at all"), lambda asked: asked == ""),
    ],
)
def test_the_question_follows_the_form_of_the_heading(asked_about: Section, fits: Callable[[str], bool]) -> None:
    for seed in range(50):
        asked = question(asked_about, "", random.Random(seed))
        # One question in ten is typed carelessly: without a capital and without its full stop.
        assert fits(asked) or fits(f"{asked[0].upper()}{asked[1:]}?")


def test_an_answer_stops_before_code_and_drops_the_announcement_of_it() -> None:
    long = "A view is a stored query that can be read like a table, although it holds no rows of its own."
    blocks = [
        Block("text", long),
        Block("text", "To create one:"),
        Block("code", "CREATE VIEW"),
        Block("text", "After."),
    ]
    assert answer(Section("Views", False, blocks)) == long
    assert answer(section("Views", "Too short.")) == ""


@given(st.lists(st.text(alphabet="ab c.:", min_size=1, max_size=1200), max_size=6), st.text(max_size=60))
def test_conversations_alternate_and_stay_short_for_any_document(texts: list[str], heading: str) -> None:
    document = Document("Git", heading, [section(f"{heading}{number}", text) for number, text in enumerate(texts)])
    for turns in conversations(document, random.Random(0)):
        spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert len(spoken) > 0
        assert all(turn["content"] for turn in turns)
        assert all(len(turn["content"]) <= 2 * MAX_ANSWER_CHARS for turn in turns if turn["role"] == "assistant")


def test_about_one_document_in_a_hundred_is_held_out_by_its_title_alone() -> None:
    held_out = [n for n in range(20_000) if is_held_out(Document("Git", f"page {n}", []))]
    assert 140 < len(held_out) < 260
    assert is_held_out(Document("Git", f"page {held_out[0]}", [section("other text")]))


def test_pages_give_prose_and_conversations_and_dictionary_entries_conversations_only(page: Document) -> None:
    entry = Document("", "Stack", [section("Stack", is_term=True)])
    assert [bool(sample.prose) for sample in samples([entry])] == [False]
    assert any(sample.prose for sample in samples([page]))
    assert list(samples([page, entry])) == list(samples([page, entry]))


def test_every_package_states_a_licence_and_manuals_state_a_topic() -> None:
    assert len({package.name for package in PACKAGES}) == len(PACKAGES)
    for package in PACKAGES:
        assert package.licence
        assert package.globs
        assert bool(package.topic) != package.is_dictionary


def test_a_machine_without_apt_is_told_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CorpusError, match="apt-get is not installed"):
        fetch(Package("git-doc", "Git", "GPL-2.0", ("./*",)), tmp_path)
