"""The options by which the operator's commands find the coordinator that they are for, declared once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from coordinator.admin_client import AdminTarget
from protocol.option_groups import in_place_of

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="The coordinator, https://host:port. Else BRIGADE_URL, else the state folder's."),
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file", help="File with an admin key. Else BRIGADE_ADMIN_KEY, else the state folder's."
    ),
]
StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state", help="The coordinator's state folder on this machine. Else BRIGADE_STATE, else the user's own."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

MINUS_IS_A_NUMBER = {"ignore_unknown_options": True}
"""For a command that takes a number: -1 is told what it may be, instead of that it is no option."""

_TARGET_OPTIONS = {"url": (UrlOption, None), "admin_key_file": (KeyFileOption, None), "state": (StateOption, None)}


def for_coordinator(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options in place of its parameter `target`, which is found by them."""
    return in_place_of("target", _TARGET_OPTIONS, _target)(command)


def _target(url: str | None, admin_key_file: Path | None, state: Path | None) -> AdminTarget:
    return AdminTarget.found(url=url, key_file=admin_key_file, state=state)
