"""Links and anchors between the documents have a target."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import ROOT

CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
# `[text][label]` and `[label][]`, with the definition `[label]: target`.
REFERENCE = re.compile(r"\[([^\]]+)\]\[([^\]]*)\]")
DEFINITION = re.compile(r"^\[([^\]]+)\]:", re.MULTILINE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("example/**/*.md")])


def anchors(document: Path) -> set[str]:
    """Return the anchors that a Markdown renderer gives to a document's headings."""
    text = re.sub(r"^(```|~~~).*?^\1", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(text))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken_links(document: Path) -> list[str]:
    """Return the links of a document without a target: a missing file, heading or definition."""
    text = CODE.sub("", document.read_text())
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    local = [target for target in targets if not ELSEWHERE.match(target)]
    defined = {label.lower() for label in DEFINITION.findall(text)}
    used = [label or described for described, label in REFERENCE.findall(text)]
    undefined = [label for label in used if label.lower() not in defined]
    return [target for target in local if not target_exists(document, target)] + undefined


def target_exists(document: Path, target: str) -> bool:
    """Return whether the target of a relative link, with or without an anchor, exists."""
    path, _, anchor = unquote(target).partition("#")
    linked = (document.parent / path) if path else document
    if not linked.exists():
        return False
    return not anchor or linked.suffix != ".md" or anchor in anchors(linked)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
def test_every_link_has_a_target(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One title!\n[a](#one-title) [b](b.md) [c](#no) `[d](d.md)` [e](https://example.org)\n"
        "[one][two] [three][] [four][five]\n\n[two]: #one-title\n[three]: #one-title\n"
    )
    assert broken_links(document) == ["b.md", "#no", "five"]
