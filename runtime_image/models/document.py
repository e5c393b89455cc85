"""A piece of documentation: a title and sections of clean paragraphs.

Every heading and every defined term opens a section, so a section is always "a thing and what is said about it": that
is what makes questions and answers out of a manual.
"""

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["text", "item", "code"]


@dataclass(frozen=True)
class Block:
    """One paragraph, list item or code listing; `text` has no line breaks unless it is code."""

    kind: Kind
    text: str


@dataclass
class Section:
    """A heading (`is_term` when it is the defined term of a definition list) and the blocks under it."""

    heading: str
    is_term: bool = False
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Document:
    """One page or dictionary entry; `topic` is empty where the headings need no context."""

    topic: str
    title: str
    sections: list[Section]


_PLAIN = str.maketrans(
    {
        "‘": "'",
        "’": "'",
        "“": '"',
        "”": '"',
        "«": '"',
        "»": '"',
        "–": "-",
        "—": "-",
        "−": "-",
        "•": "-",
        "→": "->",
        "×": "x",
        "…": "...",
        "¶": "",
        "§": "",
        "\u00a0": " ",
        "\u00ad": "",
        "\u200b": "",
        "\u2011": "-",
    }
)


def plain(text: str) -> str:
    """Return `text` with typographic characters written in ASCII: a vocabulary of 4096 has no room for them."""
    return text.translate(_PLAIN)
