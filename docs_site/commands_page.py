"""The reference of a command line: every command with its arguments and options, as `--help` has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import typer

from docs_site.tables import code, plain, table

Record = tuple[str, str]
"""How an option or argument is written, and what it is for."""
SHARED_FROM = 6
"""So many commands with the same option: it is described once."""
_HEADS = ("", "")


def commands_page(name: str, app: typer.Typer) -> str:
    """The page of one program."""
    root: Any = typer.main.get_command(app)
    commands = [(path, command) for path, command in commands_of(root, name) if not is_group(command)]
    counts = Counter(record for _, command in commands for record in records(command))
    shared = [record for record, n in counts.items() if n >= SHARED_FROM and record[0].startswith("-")]
    parts = [
        f"# Command {name}",
        paragraphs(root.help),
        f"`{name} --help`, and `--help` behind each command, say the same: this page is made of it.",
        *(_shared(shared) if shared else ()),
        *(_section(path, command, shared) for path, command in commands_of(root, name)),
    ]
    return "\n\n".join(parts) + "\n"


def _shared(shared: list[Record]) -> Iterator[str]:
    yield "## Options of most commands"
    yield "Where a command's table ends with their names, they mean what is said here."
    yield table(_HEADS, map(_row, shared))


def is_group(command: Any) -> bool:
    """Whether it has commands below it."""
    return getattr(command, "commands", None) is not None


def commands_of(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All groups and commands below this one, by what one types; a group comes before what is in it."""
    for name, each in command.commands.items():
        if each.hidden:
            continue
        yield f"{path} {name}", each
        if is_group(each):
            yield from commands_of(each, f"{path} {name}")


def records(command: Any) -> list[Record]:
    """Arguments and options, as its help shows them."""
    context = typer.Context(command)
    found = (parameter.get_help_record(context) for parameter in command.params)
    return [record for record in found if record is not None]


def paragraphs(text: str | None) -> str:
    """A help text as Markdown; lines that were broken by hand are one paragraph again."""
    return "\n\n".join(plain(each) for each in (text or "").split("\n\n"))


def _section(path: str, command: Any, shared: list[Record]) -> str:
    if is_group(command):
        return f"## {path}\n\n{paragraphs(command.help)}"
    usage = " ".join(command.collect_usage_pieces(typer.Context(command)))
    level = "##" if path.count(" ") == 1 else "###"
    own = [_row(record) for record in records(command) if record not in shared]
    others = [_name(record) for record in records(command) if record in shared]
    if others:
        own.append((", ".join(map(code, others)), "as above"))
    parts = [f"{level} {path}", f"    {path} {usage}", paragraphs(command.help)]
    return "\n\n".join([*parts, table(_HEADS, own)] if own else parts)


def _row(record: Record) -> tuple[str, str]:
    return code(record[0]), plain(record[1])


def _name(record: Record) -> str:
    return record[0].split()[0]
