"""The training text: documents from Debian's documentation, cleaned, deduplicated and split by document.

This module knows what is kept and what is held out; it does not know tokens. A document is held out by the hash of
its title, so the split does not move when packages are added, and both its prose and its conversations are held out.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models.conversations import Message, conversations
from models.dictionary import read_dictionary
from models.document import Block, Document, Section
from models.packages import PACKAGES, Package, fetch, unpack, version
from models.pages import read_page

MAX_CODE_CHARS = 500
MAX_REPEATS = 3
HELD_OUT_PER_MILLE = 10


@dataclass(frozen=True)
class Source:
    """A package as it was used: its version and how many characters of text it gave."""

    name: str
    version: str
    licence: str
    num_documents: int
    num_chars: int


@dataclass(frozen=True)
class Sample:
    """One training sample: plain prose, or a conversation."""

    prose: str = ""
    messages: tuple[Message, ...] = ()


def documents(directory: Path) -> tuple[list[Document], list[Source]]:
    """Fetch every package into `directory` and return its documents and an account of the sources."""
    pages: list[tuple[Package, str, list[Document]]] = []
    for package in PACKAGES:
        archive = fetch(package, directory / "debs")
        files = unpack(package, archive, directory / "files")
        if package.is_dictionary:
            found = [entry for path in files if path.suffix == ".index" for entry in read_dictionary(path)]
        else:
            found = [page for path in files if (page := read_page(path, package.topic)) is not None]
        pages.append((package, version(package, archive), found))
    seen: Counter[str] = Counter()
    kept: list[Document] = []
    sources: list[Source] = []
    for package, number, found in pages:
        cleaned = [document for page in found if (document := _cleaned(page, seen)).sections]
        kept += cleaned
        num_chars = sum(len(prose(document)) for document in cleaned)
        sources.append(Source(package.name, number, package.licence, len(cleaned), num_chars))
    return kept, sources


def is_held_out(document: Document) -> bool:
    """Whether a document belongs to the 1 % that is never trained on."""
    digest = hashlib.sha256(f"{document.topic}/{document.title}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % 1000 < HELD_OUT_PER_MILLE


def prose(document: Document) -> str:
    """Return a document as plain text in Markdown's manner: headings, paragraphs, items and indented code."""
    parts: list[str] = []
    for number, section in enumerate(document.sections):
        if section.heading:
            parts.append(f"{'#' if number == 0 else '##'} {section.heading}")
        for block in section.blocks:
            if block.kind == "code":
                parts.append("\n".join(f"    {line}".rstrip() for line in block.text.splitlines()))
            else:
                parts.append(f"- {block.text}" if block.kind == "item" else block.text)
    return "\n\n".join(parts) + "\n"


def samples(chosen: Iterable[Document]) -> Iterator[Sample]:
    """Yield the samples of `chosen` in a fixed random order: the prose of each page, and each of its conversations.

    A dictionary entry has no prose form: as a conversation it says the same.
    """
    choose = random.Random(0)  # noqa: S311 - an order must be repeatable, not secret
    drawn: list[Sample] = []
    for document in chosen:
        if document.topic:
            drawn.append(Sample(prose=prose(document)))
        drawn += [Sample(messages=tuple(turns)) for turns in conversations(document, choose)]
    choose.shuffle(drawn)
    yield from drawn


def _cleaned(document: Document, seen: Counter[str]) -> Document:
    """Return a document without unreadable, over-long or often repeated blocks, and without empty sections."""
    sections: list[Section] = []
    for section in document.sections:
        blocks: list[Block] = []
        for block in section.blocks:
            seen[block.text] += 1
            if seen[block.text] <= MAX_REPEATS and _is_readable(block):
                blocks.append(block)
        if blocks:
            sections.append(Section(section.heading, section.is_term, blocks))
    return Document(document.topic, document.title, sections)


def _is_readable(block: Block) -> bool:
    if block.kind == "code":
        return len(block.text) <= MAX_CODE_CHARS and block.text.isascii()
    foreign = sum(not character.isascii() for character in block.text)
    letters = sum(character.isalpha() for character in block.text)
    return foreign * 50 <= len(block.text) and letters * 2 >= len(block.text)
