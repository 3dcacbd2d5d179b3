"""The glossary: in order, and each word is in the chapters that it points to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
LINK = re.compile(r"\{doc\}`([^`]+)`")


def entries() -> list[tuple[list[str], str]]:
    """Return (words, explanation) of each entry; the first word is the one that it stands under."""
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    body = re.search(r"```\{glossary\}\n(.*?)\n```", text, flags=re.DOTALL)
    assert body is not None
    found = []
    for entry in body[1].split("\n\n"):
        lines = entry.split("\n")
        words = [line for line in lines if not line.startswith(" ")]
        found.append((words, " ".join(line.strip() for line in lines[len(words) :])))
    return found


def test_words_are_in_order_and_stand_once() -> None:
    words = [words[0].lower() for words, _ in entries()]
    assert words == sorted(words)
    every = [word.lower() for words, _ in entries() for word in words]
    assert len(every) == len(set(every)) > 80


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry[0][0])
def test_a_word_is_in_the_pages_it_points_to(entry: tuple[list[str], str]) -> None:
    words, text = entry
    pages = LINK.findall(text)
    assert pages, f"{words[0]}: no chapter is named"
    for page in pages:
        content = re.sub(r"\s+", " ", (DOCS / f"{page}.md").read_text(encoding="utf-8").lower())
        assert any(word.lower() in content for word in words), f"{words} in {page}"


def test_citations_have_a_source_each_and_sources_are_numbered() -> None:
    text = (DOCS / "bibliography.md").read_text(encoding="utf-8")
    sources = dict(re.findall(r"\((bib-[a-z0-9]+)\)=\n\*\*\[(\d+)\]\*\*", text))
    assert [int(number) for number in sources.values()] == list(range(1, len(sources) + 1))
    cited = set()
    for page in (path for path in DOCS.rglob("*.md") if "_build" not in path.parts):
        for number, label in re.findall(
            r"\{ref\}`\[(\d+)\]\s+<(bib-[^>]+)>`", page.read_text(encoding="utf-8")
        ):
            assert sources.get(label) == number, f"{page.name}: [{number}] <{label}>"
            cited.add(label)
    assert sources.keys() - cited == set(), "sources that no page cites"
