"""The project's pages as data: prose, links, code blocks and tables. Parses only the Markdown that these pages use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """One code block: its language ("" if there is none) and its text."""

    language: str
    text: str

    @property
    def file(self) -> str:
        """The file that the block's first line says it is, as `# house_adapters.py`; "" if it says none."""
        named = re.match(r"# (\w[\w.-]*\.\w+)\n", self.text)
        return named[1] if named else ""


def read(name: str) -> str:
    """A page's text, by its path below the root."""
    return (ROOT / name).read_text()


def fences(name: str, *languages: str) -> list[Fence]:
    """The page's code blocks, in order; only those in `languages`, if there are any."""
    blocks = [Fence(language, text) for language, text in _FENCE.findall(read(name))]
    return [fence for fence in blocks if not languages or fence.language in languages]


def prose(name: str) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", read(name))


def links(name: str) -> list[str]:
    """The targets of the page's links."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(name))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    headings = _HEADING.findall(_FENCE.sub("", text))
    plain = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def code_words(name: str) -> list[str]:
    """The texts between single backticks in the page's prose."""
    return re.findall(r"`([^`\n]+)`", prose(name))


def section(name: str, heading: str) -> str:
    """The part of a page below `heading` (without its #s), up to the next heading of any level."""
    text = read(name)
    # A comment in a code block looks like a heading.
    bare = _FENCE.sub(lambda fence: " " * len(fence[0]), text)
    start = re.search(rf"^#+ {re.escape(heading)}$", bare, re.MULTILINE)
    assert start is not None, f"{name} has no section {heading!r}"
    end = _HEADING.search(bare, start.end())
    return text[start.end() : end.start() if end else None]


def table(text: str) -> list[list[str]]:
    """The cells of the first table in `text`, without its header and delimiter rows."""
    rows = list(_rows(text))
    return rows[2:]


def _rows(text: str) -> Iterator[list[str]]:
    inside = False
    for line in text.splitlines():
        if line.startswith("|"):
            inside = True
            yield [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
        elif inside:
            return
