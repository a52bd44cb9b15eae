"""Links between the documents lead somewhere, and so do their anchors."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("example/**/*.md")])


def anchors(document: Path) -> set[str]:
    """Return the anchors that a Markdown renderer makes of a document's headings."""
    text = re.sub(r"^(```|~~~).*?^\1", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    """Return the links of a document that lead to no file or to no heading of it."""
    text = CODE.sub("", document.read_text())
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    local = [target for target in targets if not ELSEWHERE.match(target)]
    return [target for target in local if not leads_somewhere(document, target)]


def leads_somewhere(document: Path, target: str) -> bool:
    """Tell whether a relative link, with or without an anchor, has an end."""
    path, _, anchor = unquote(target).partition("#")
    goal = (document.parent / path) if path else document
    if not goal.exists():
        return False
    return not anchor or goal.suffix != ".md" or anchor in anchors(goal)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One title!\n[a](#one-title) [b](b.md) [c](#no) `[d](d.md)` [e](https://example.org)\n"
    )
    assert broken_links(document) == ["b.md", "#no"]
