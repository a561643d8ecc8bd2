"""The docs build as a site: every link and anchor leads somewhere, all is in the menu, nothing is fetched."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from docs_site.hooks import link_in_site

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.filterwarnings("default")
def test_the_site_builds_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    monkeypatch.setattr(handler, "emit", lambda record: found.append(record.getMessage()))
    logging.getLogger("mkdocs").addHandler(handler)
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=False))
    finally:
        logging.getLogger("mkdocs").removeHandler(handler)
    assert found == []
    for page in ("index.html", "reference/coord.html", "reference/rest-api.html", "examples/index.html"):
        html = (tmp_path / page).read_text()
        assert "<h1" in html
        assert re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']?https?://""", html) == []
    assert "coord key create" in (tmp_path / "reference/coord.html").read_text()


@pytest.mark.parametrize(
    ("target", "page", "place"),
    [
        ("library.md", "index.md", "library.md"),
        ("../examples/README.md", "library.md", "examples/README.md"),
        ("../docs/library.md", "examples/README.md", "../library.md"),
        ("stream.py", "examples/README.md", "stream.py"),
        ("docs/gateway.md", "changelog.md", "gateway.md"),
        ("../../CHANGELOG.md", "how-to/upgrade.md", "../changelog.md"),
    ],
)
def test_links_lead_to_where_the_site_has_what_they_mean(target: str, page: str, place: str) -> None:
    assert link_in_site(target, page) == place
