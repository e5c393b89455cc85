"""Dictionaries in the dictd format as documents of one section each.

This module knows the format's two files and the habits of the Free On-line Dictionary of Computing and the Jargon
File; it does not know what will be learned from them. A definition that begins "A thing that ..." is completed to
"Headword is a thing that ...", because an answer names what it is about.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

from models.document import Block, Document, Section, plain


def read_dictionary(index: Path) -> Iterator[Document]:
    """Yield the entries of a dictd dictionary, given its index file (`name.index` beside `name.dict.dz`).

    An index line is headword, offset and length, the numbers in base 64 (RFC 2229's companion format, dictfmt(1)).
    """
    data = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
    seen = set()
    for line in index.read_text(encoding="utf-8").splitlines():
        headword, offset, length = line.split("\t")
        start = _base64(offset)
        if headword.startswith("00") or start in seen:
            continue
        seen.add(start)
        lines = data[start : start + _base64(length)].decode("utf-8", errors="replace").splitlines()
        blocks = [Block("text", text) for text in _definition(lines[1:])]
        if lines and blocks:
            title = " ".join(plain(lines[0]).strip().strip(":").split())
            blocks[0] = Block("text", _as_sentence(title, blocks[0].text))
            yield Document("", title, [Section(title, is_term=True, blocks=blocks)])


def _as_sentence(headword: str, definition: str) -> str:
    """Turn "(ABBR) A thing that ..." into "Headword (ABBR) is a thing that ...", which reads as an answer."""
    found = re.match(r"(\([^)]*\) )?(?:1\. )?(An?|The|Any|One)\b(.*)", definition, flags=re.S)
    if not found:
        return definition
    short, article, rest = found.groups(default="")
    return f"{headword[0].upper()}{headword[1:]} {short}is {article.lower()}{rest}"


def _base64(digits: str) -> int:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    value = 0
    for digit in digits:
        value = value * 64 + letters.index(digit)
    return value


def _definition(lines: list[str]) -> Iterator[str]:
    """Yield the paragraphs of a dictionary entry without link braces, subject tags, sources and dates."""
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        text = " ".join(plain(paragraph).split())
        text = re.sub(r"[{}]", "", text)
        text = re.sub(r"^(\d+\. )?(<[^>]*>\s*)+", r"\1", text)
        text = re.sub(r"^\[[^\]]*\]\s*|^:[^:]*:\s+|\s*\(\d{4}-\d\d-\d\d\)$|\(http\S+\)|\s*<[^>]*@[^>]*>", "", text)
        if len(text) > 20 and not re.match(r"^\(?(https?|ftp|Usenet|\d{4}-)", text):
            yield text
