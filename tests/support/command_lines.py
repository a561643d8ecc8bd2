"""Command lines of ours as they stand in pages and files, held against the programs themselves."""

from __future__ import annotations

import re
import shlex
from typing import Any

import typer

import client.cli
import coordinator.cli
import worker.cli

APPS = {"coord": coordinator.cli.app, "worker": worker.cli.app, "client": client.cli.app}
TREES: dict[str, Any] = {name: typer.main.get_command(app) for name, app in APPS.items()}
OF_ALL = {"--help", "--version", "--install-completion", "--show-completion"}
_BEFORE = re.compile(r"^(?:\$ |> |sudo (?:-u \w+ )?|docker compose exec (?:-T )?\w+ |\w+=(?:\"[^\"]*\"|\S*) )+")
"""What may stand before a command: a prompt, another user, a container, variables."""


def commands_in(line: str) -> list[list[str]]:
    """The words of each command of ours in a line of a shell."""
    found = []
    for part in re.split(r"\s(?:&&|\|\|?|;)\s|;\s", line.strip()):
        command = _BEFORE.sub("", part.strip())
        if command.split(" ")[0] in APPS:
            found.append(_words(command))
    return found


def wrong_with(words: list[str], *, is_whole: bool) -> str:
    """What a program would not take of a command line; empty if it takes it. A whole one lacks nothing either."""
    command, rest = TREES[words[0]], words[1:]
    while getattr(command, "commands", None) is not None:
        if not rest or rest[0] in OF_ALL:
            return ""
        if rest[0].startswith("-") and "create" in command.commands:
            rest = ["create", *rest]  # `coord invite --uses 3`
        if rest[0] not in command.commands:
            return "" if not is_whole and rest[0] in ("...", "…") else f"there is no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
        if not rest and "create" in getattr(command, "commands", {}):
            rest = ["create"]
    return _wrong_options(command, rest) or (_wrong_arguments(command, rest) if is_whole else "")


def _words(command: str) -> list[str]:
    shell = re.split(r"\s(?:<|>|>>|2>)\s?", command)[0]
    return shlex.split(shell, comments=True)


def _wrong_options(command: Any, rest: list[str]) -> str:
    known = OF_ALL | {
        name for each in command.params for name in (*each.opts, *getattr(each, "secondary_opts", []))
    }
    unknown = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    return f"there is no option {unknown[0]}" if unknown else ""


def _wrong_arguments(command: Any, rest: list[str]) -> str:
    """What the program's own parser says of options without values, and of arguments too many or too few."""
    context = typer.Context(command)
    try:
        said, left, _ = command.make_parser(context).parse_args(args=list(rest))
    except Exception as exc:  # noqa: BLE001 - whatever it is, the line is wrong
        return str(exc)
    if left:
        return f"too much: {' '.join(left)}"
    lacking = [each.name for each in command.params if each.required and said.get(each.name) in (None, ())]
    return f"without {', '.join(lacking)}" if lacking else ""
