"""HTML pages as documents.

This module knows HTML; it does not know where a file came from or what will be learned from it. A page is read as a
flat run of blocks: navigation, tables and everything else that is not prose or a listing is dropped on the way.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Literal

from models.document import Block, Document, Kind, Section, plain

_SKIPPED_TAGS = frozenset(
    {"title", "script", "style", "nav", "table", "svg", "button", "form", "footer", "noscript", "sup"}
)
# What Sphinx, DocBook, mdBook and hand-written pages call their navigation and decorations.
_SKIPPED_CLASS_NAMES = """
headerlink sphinxsidebar sidebar related navheader navfooter navigation toc toctree-wrapper contents footer indextable
footnote footnotes menu-bar nav-wrapper nav-wide-wrapper top up toplang bottomlang versionmodified quickview
viewcode-link titlepage-nav docnav breadcrumbs admonition-title rubric-toc
"""
_SKIPPED_CLASSES = frozenset(_SKIPPED_CLASS_NAMES.split())
_SKIPPED_IDS = frozenset({"sidebar", "quickview", "preamble", "path", "footer", "toc", "nav", "sidetoc", "bottom"})
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_BREAKS = frozenset({"p", "div", "section", "ul", "ol", "dl", "dd", "blockquote", "article", "body", "header", "main"})
_VOID = frozenset({"br", "img", "hr", "meta", "link", "input", "area", "base", "col", "wbr", "source"})


class _Reader(HTMLParser):
    """Collects sections; text inside a skipped element is dropped by counting that element's own tag."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.sections = [Section("")]
        self._text: list[str] = []
        self._state: Kind | Literal["heading", "term"] = "text"
        self._skipped_tag = ""
        self._skip_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._skip_depth:
            self._skip_depth += tag == self._skipped_tag
            return
        if tag in _VOID:
            self._text.append("\n" if tag == "br" else "")
            return
        values = dict(attrs)
        classes = (values.get("class") or "").split()
        unwanted = not _SKIPPED_CLASSES.isdisjoint(classes) or values.get("id") in _SKIPPED_IDS
        if unwanted or tag in _SKIPPED_TAGS:
            self._skipped_tag, self._skip_depth = tag, 1
        elif tag in _HEADINGS:
            self._flush("heading")
        elif tag == "dt":
            self._flush("term")
        elif tag == "pre":
            self._flush("code")
        elif tag == "li":
            self._flush("item")
        elif tag in _BREAKS and self._state not in ("code", "item"):
            self._flush("text")

    def handle_endtag(self, tag: str) -> None:
        if self._skip_depth:
            self._skip_depth -= tag == self._skipped_tag
        elif tag in _HEADINGS or tag in ("dt", "pre", "li", "p", "ul", "ol", "dl", "dd"):
            self._flush("text")

    def handle_data(self, data: str) -> None:
        if not self._skip_depth:
            self._text.append(data)

    def _flush(self, following: Kind | Literal["heading", "term"]) -> None:
        raw, state = plain("".join(self._text)), self._state
        self._text, self._state = [], following
        text = raw.strip("\n").rstrip() if state == "code" else " ".join(raw.split())
        if not text:
            return
        if state == "heading" or state == "term":
            self.sections.append(Section(_heading(text), is_term=state == "term"))
        else:
            self.sections[-1].blocks.append(Block(state, text))

    def close(self) -> None:
        super().close()
        self._flush("text")


def _heading(text: str) -> str:
    """Return a heading without its chapter number and trailing punctuation."""
    return re.sub(r"^(chapter|appendix|part)?\s*([A-Z]|\d+)?(\.\d+)*\.?\s+(?=\S)", "", text, flags=re.I).rstrip(" .:#")


def read_page(path: Path, topic: str) -> Document | None:
    """Read one HTML page; `None` when it holds no readable text."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8", errors="replace"))
    reader.close()
    sections = [section for section in reader.sections if section.heading or section.blocks]
    title = next((section.heading for section in sections if section.heading), "")
    return Document(topic, title, sections) if title and any(section.blocks for section in sections) else None
