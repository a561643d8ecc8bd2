"""Pages and files of the site that are made: of the programs, or of other pages. By their paths within docs/."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import client.cli
import coordinator.cli
import worker.cli
from client.cli_config import CLIENT, GATEWAY
from coordinator.cli_config import SECTION as COORDINATOR
from docs_site.commands_page import commands_page
from docs_site.errors_page import errors_page
from docs_site.rest_page import openapi_document, rest_page
from docs_site.settings_pages import keys_page, settings_page
from worker.cli_config import SECTION as WORKER

DECISIONS = Path(__file__).parent.parent / "docs/decisions"
APPS = {"coord": coordinator.cli.app, "worker": worker.cli.app, "client": client.cli.app}
SECTIONS = ((COORDINATOR, "coord"), (WORKER, "worker"), (CLIENT, "client"), (GATEWAY, "client"))


def decisions_page() -> str:
    """A list of the decisions, by their titles."""
    titles = (
        (path.name, path.read_text().splitlines()[0].lstrip("# ")) for path in sorted(DECISIONS.glob("0*.md"))
    )
    links = [f"* {name[:4]}: [{title.split(maxsplit=1)[1]}]({name})" for name, title in titles]
    return "\n".join(
        ("# Decisions", "", "What was decided, and why; with the measurements that it rests on.", "", *links, "")
    )


MADE: Mapping[str, Callable[[], str]] = {
    **{f"reference/{name}.md": partial(commands_page, name, app) for name, app in APPS.items()},
    "reference/brigade-toml.md": lambda: keys_page((section, APPS[name]) for section, name in SECTIONS),
    "reference/settings.md": settings_page,
    "reference/errors.md": errors_page,
    "reference/rest-api.md": lambda: rest_page(openapi_document()),
    "reference/openapi.json": lambda: json.dumps(openapi_document(), indent=1),
    "decisions/index.md": decisions_page,
}
"""What makes each page's Markdown, or a file's text."""
