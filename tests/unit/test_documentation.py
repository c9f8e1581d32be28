"""What the documentation names is there: files, folders, pages and their sections."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])
_PATH = re.compile(r"`((?:evospec|actors|services|infra|tests|docs)/[\w./-]*)`")
_LINK = re.compile(r"\]\((?!https?:)([^)\s#]*)(?:#([^)\s]*))?\)")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    lines = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL).splitlines()
    heads = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in heads}


def named(page: Path) -> set[str]:
    return set(_PATH.findall(page.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["contributing.md", "concepts.md", "operations.md"])
def test_every_path_that_is_named_exists(name: str) -> None:
    paths = named(ROOT / "docs" / name)
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        found = (page.parent / target).resolve() if target else page
        if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_the_readme_leads_to_every_page() -> None:
    linked = {target for target, _ in _LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))}
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert sorted(pages - linked) == []
