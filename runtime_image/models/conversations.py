"""Documentation sections as questions and answers, so that a tiny model learns to talk about what it is asked.

This module knows headings and paragraphs; it does not know tokens or templates. The phrasing follows the form of the
heading ("Creating a table" is asked differently from "Views"), and every choice comes from the generator it is given.
"""

import random
import re
from collections.abc import Iterator

from models.document import Document, Section

Message = dict[str, str]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that explains software.",
    "Answer the question clearly and briefly.",
    "You are a technical writer. Explain things in plain words.",
    "You are Capstan, a small language model that knows some documentation.",
)
# A pattern that stands twice is asked twice as often.
_THINGS: tuple[str, ...] = (
    "What is {}?",
    "What is {}?",
    "What is {}?",
    "Explain {}.",
    "Tell me about {}.",
    "Can you explain {}?",
    "What does {} mean?",
    "Describe {}.",
    "I want to know about {}.",
    "Please explain what {} is.",
    "Give me a short explanation of {}.",
    "Write a paragraph about {}.",
    "{}",
)
_PLURALS: tuple[str, ...] = (
    "What are {}?",
    "What are {}?",
    "Explain {}.",
    "Tell me about {}.",
    "Can you explain {}?",
    "Describe {}.",
    "How do {} work?",
    "Write a paragraph about {}.",
)
_DOINGS: tuple[str, ...] = (
    "Tell me about {}.",
    "Explain {}.",
    "What should I know about {}?",
    "I need help with {}.",
    "How does {} work?",
    "Give me advice on {}.",
)
_TERMS: tuple[str, ...] = ("What does {} do?", "What is {}?", "Explain {}.", "How do I use {}?", "What is {} for?")
_ASKING = frozenset(["how", "why", "what", "when", "where", "which", "who", "can", "is", "does", "should"])
# Headings made of these words alone name no subject.
_VAGUE_WORDS = """
introduction overview description notes note see also examples example author authors synopsis options name bugs
compatibility parameters return value history summary contents abstract details usage other related reporting git
miscellaneous warning tip important more caution errors files arguments outputs
"""
_VAGUE = frozenset(_VAGUE_WORDS.split())

MIN_ANSWER_CHARS = 80
MAX_ANSWER_CHARS = 900


def answer(section: Section) -> str:
    """Return the section's first paragraphs and list items as an answer, or nothing when they say too little."""
    parts: list[str] = []
    length = 0
    for block in section.blocks:
        if block.kind == "code":
            break
        text = f"- {block.text}" if block.kind == "item" else block.text
        if length + len(text) > MAX_ANSWER_CHARS and parts:
            break
        parts.append(text)
        length += len(text)
    # A paragraph that ends in a colon announces something that has been cut away.
    while parts and parts[-1].endswith(":"):
        parts.pop()
    text = "\n".join(parts)
    return text if MIN_ANSWER_CHARS <= len(text) <= 2 * MAX_ANSWER_CHARS else ""


def question(section: Section, topic: str, choose: random.Random) -> str:
    """Return a question that the section answers, or nothing when its heading names no subject."""
    heading = section.heading
    if not _names_a_subject(heading):
        return ""
    if heading.endswith("?"):
        return heading
    if not section.is_term and heading.split()[0].lower() in _ASKING:
        return f"{heading}?"
    subject, patterns = _subject(section, topic)
    if not subject:
        return ""
    asked = choose.choice(patterns).format(subject)
    if topic and topic.lower() not in asked.lower() and choose.random() < 0.5:
        asked = f"In {topic}, {_lower_first(asked)}" if choose.random() < 0.5 else _inside(asked, topic)
    # Some people type without a capital and a full stop.
    if choose.random() < 0.1:
        asked = asked[0].lower() + asked[1:].rstrip("?.")
    return asked


def _names_a_subject(heading: str) -> bool:
    words = heading.split()
    if not 1 <= len(words) <= 10 or len(heading) > 80 or "@" in heading:
        return False
    return re.search(r"[A-Za-z]{2}", heading) is not None and any(
        word.strip(",()").lower() not in _VAGUE for word in words
    )


def _subject(section: Section, topic: str) -> tuple[str, tuple[str, ...]]:
    """Return what is asked about, and the phrasings that suit it; the subject is empty when it is unwieldy."""
    heading, words = section.heading, section.heading.split()
    if section.is_term:
        # A signature is asked about by its name alone.
        name = re.sub(r"^class |^exception |\(.*$| ->.*$", "", heading).strip()
        return name if len(name.split()) <= 4 else "", _TERMS if topic else _THINGS
    if words[0].endswith("ing") and len(words) > 1:
        return _lower_first(heading), _DOINGS
    if words[-1].endswith("s") and not words[-1].endswith(("ss", "us", "is")):
        return _lower_first(heading), _PLURALS
    return _lower_first(heading), _THINGS


def conversations(document: Document, choose: random.Random) -> Iterator[list[Message]]:
    """Yield the document's conversations: mostly one turn, sometimes several, sometimes with a system message."""
    turns: list[Message] = []
    for section in document.sections:
        reply = answer(section)
        asked = question(section, document.topic, choose) if reply else ""
        if not asked:
            continue
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
        if choose.random() < 0.75:
            yield _opened(turns, choose)
            turns = []
    if turns:
        yield _opened(turns, choose)


def _opened(turns: list[Message], choose: random.Random) -> list[Message]:
    if choose.random() < 0.3:
        return [{"role": "system", "content": choose.choice(SYSTEM_PROMPTS)}, *turns]
    return turns


def _lower_first(text: str) -> str:
    """Lower the first letter unless the first word is a name or an abbreviation."""
    return text[0].lower() + text[1:] if re.match(r"[A-Z][a-z]+\b", text) and not re.match(r"I ", text) else text


def _inside(asked: str, topic: str) -> str:
    return f"{asked[:-1]} in {topic}{asked[-1]}" if asked[-1] in "?." else f"{asked} in {topic}"
