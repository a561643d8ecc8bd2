"""The docs name what is there, and nothing that isn't."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from docs_site.made_pages import MADE

ROOT = Path(__file__).parent.parent
ROOMS = (
    "protocol",
    "protocol/model_files",
    "coordinator",
    "coordinator/policy",
    "coordinator/packing",
    "worker",
    "client",
    "client/causal_lm",
    "client/gateway",
    "client/terminal",
)


@pytest.mark.parametrize("room", ROOMS)
def test_the_architecture_page_has_the_first_sentence_of_every_module(room: str) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    section = page.split(f"### {room}\n")[1].split("\n### ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE))
    modules = {path.stem: path for path in (ROOT / room).glob("*.py") if path.stem != "__init__"}
    assert listed == {name: first_line(path) for name, path in modules.items()}


def first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        path = (page.parent / target).resolve()
        is_made = any(path == ROOT / "docs" / made for made in MADE)
        assert is_made or path.exists(), f"{page.name} links to {target}"
