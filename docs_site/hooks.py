"""What `mkdocs build` is told to do beyond its own: add the pages that are made of the programs, and mend links.

The repository's pages are read in two places, where they lie and in the site. In the repository a link may lead out
of docs/ (`../examples/README.md`); the site has some of these files too, at other places.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # mkdocs is a program of its own and knows nothing of this tree

from docs_site.made_pages import MADE  # noqa: E402 - needs the line above

PLACES = {"CHANGELOG.md": "changelog.md"}
"""Files outside of docs/ and examples/ that the site has, and where."""
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)\s#]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add pages that are made, and files that lie elsewhere in the repository."""
    for path, made in MADE.items():
        files.append(File.generated(config, path, content=made()))
    for name, path in PLACES.items():
        files.append(File.generated(config, path, content=(ROOT / name).read_text()))
    for source in sorted((ROOT / "examples").iterdir()):
        if source.suffix in (".md", ".py"):
            files.append(File.generated(config, f"examples/{source.name}", content=source.read_text()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Have links lead to where the site has what they mean."""
    return _LINK.sub(lambda found: link_in_site(found[0], page.file.src_uri), markdown)


def link_in_site(target: str, page: str) -> str:
    """Where a link of the page leads within the site; as it is where the page and its target both lie in docs/."""
    source = next((name for name, path in PLACES.items() if path == page), None)
    if source is None:
        source = page if page.startswith("examples/") else f"docs/{page}"
    wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    place = PLACES.get(wanted, wanted.removeprefix("docs/"))
    return posixpath.relpath(place, posixpath.dirname(page) or ".")
