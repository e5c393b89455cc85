"""The commands of the README, as a reader copies them."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
_BLOCK = re.compile(r"^ {4}\S.*\n(?:^ {4}.*\n)*", re.MULTILINE)
_REMARK = re.compile(r"\s{2,}#.*$", re.MULTILINE)


def commands(headline: str | None = None) -> list[str]:
    """What stands in indented blocks, one command each, without remarks; below one headline if one is named."""
    text = TEXT if headline is None else TEXT.split(f"\n## {headline}\n")[1].split("\n## ")[0]
    # A manifest is indented too, and is no command.
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "".join(re.sub("^ {4}", "", block, flags=re.MULTILINE) for block in _BLOCK.findall(text))
    return re.sub(r"\\\n\s*", "", _REMARK.sub("", lines)).splitlines()
