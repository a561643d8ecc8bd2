"""The references of settings: the keys of `brigade.toml`, and what operators change while a coordinator runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer

from coordinator.policy.settings import SETTINGS
from docs_site.commands_page import commands_of, is_group, records
from docs_site.tables import code, plain, table
from protocol.config_values import Section, keys_for
from protocol.configured_commands import options_of

KEYS = """\
# Keys of brigade.toml

Keys are the options' own names. [Settings in a file](../configuration.md) says which file counts, and what goes
before it.
"""
SETTINGS_PAGE = """\
# Settings of a coordinator

What operators change while it runs, with `coord settings set NAME VALUE`; `coord settings show` says what is in
force and why. What `coord serve` was given, as an option, in its environment or in
`brigade.toml`, goes before what is set here.
"""


def keys_page(sections: Iterable[tuple[Section, typer.Typer]]) -> str:
    """The keys of each section, with the variable that says the same."""
    parts = [KEYS]
    for section, app in sections:
        parts += [f"## [{section.name}]", table(("key", "value", "variable", ""), _keys(section, app))]
    return "\n\n".join(parts) + "\n"


def _keys(section: Section, app: typer.Typer) -> list[tuple[str, str, str, str]]:
    root: Any = typer.main.get_command(app)
    found: dict[str, tuple[str, str, str, str]] = {}
    for _, command in commands_of(root, ""):
        if is_group(command):
            continue
        options = options_of(command)
        helps = dict(records(command))
        for key in sorted(keys_for(section, command.name, options)):
            kind = options[key]
            value = f"{kind.kind}, or several" if kind.takes_several else kind.kind
            about = next((text for names, text in helps.items() if f"--{key} " in f"{names} "), "")
            found.setdefault(
                key,
                (code(key), value, code(section.variables[key]) if key in section.variables else "", plain(about)),
            )
    return [found[key] for key in sorted(found)]


def settings_page() -> str:
    """Every setting, with what it may be."""
    rows = ((code(each.name), plain(each.meaning), plain(each.allowed_words())) for each in SETTINGS.values())
    return f"{SETTINGS_PAGE}\n{table(('name', 'what it is', 'what it may be'), rows)}\n"
