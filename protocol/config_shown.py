"""What is in force, as a `brigade.toml` that says behind each value where it comes from. Pure; no secrets."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.config_file import holds_secret
from protocol.config_values import FromFile, Section, deciding_variable

_WIDTH = 115


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownOption:
    """An option of the command, and its value where neither a variable nor its absence says more."""

    key: str
    value: Any
    is_given: bool
    """Whether the command line says it."""
    help: str


def settings_text(
    heading: str,
    sections: Sequence[Section],
    options: Sequence[ShownOption],
    taken: Mapping[str, FromFile],
    environ: Mapping[str, str],
) -> str:
    """The text of a file of one section, the first; below it what isn't set, with what it is for."""
    settled, unset = [], []
    for option in options:
        line = _line(option, sections, taken, environ)
        if line is None:
            text = f"{option.key}: {plain_help(option.help)}".rstrip(": ")
            unset += textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="#     ")
        else:
            settled.append(line)
    blank = ["", "# Not set:"] if unset else []
    return "\n".join([heading, f"[{sections[0].name}]", *settled, *blank, *unset]) + "\n"


def plain_help(text: str) -> str:
    """A help text on one line, without the marks that rich reads."""
    return " ".join(text.split()).replace("\\[", "[")


def _line(
    option: ShownOption, sections: Sequence[Section], taken: Mapping[str, FromFile], environ: Mapping[str, str]
) -> str | None:
    key = option.key
    if option.is_given:
        return _setting(key, option.value, f"--{key}")
    if key in taken:
        return _setting(key, option.value, taken[key].where)
    for section in sections:
        variable = deciding_variable(section, key, environ)
        if variable is not None and variable == section.variables.get(key):
            return _setting(key, environ[variable], variable)
        if variable is not None:
            return f"# {key}: {variable} goes before it"
    return None if option.value in (None, False, [], ()) else _setting(key, option.value, "the default")


def _setting(key: str, value: Any, where: str) -> str:
    if holds_secret(key, value):
        return f"# {key} is set, and a secret  # {where}"
    return f"{key} = {_literal(value)}  # {where}"


def _literal(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(_literal(each) for each in value)}]"
        case _:
            return json.dumps(str(value), ensure_ascii=False)  # TOML's basic strings have JSON's escapes
