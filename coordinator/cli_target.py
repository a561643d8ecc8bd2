"""The options by which the operator's commands find the coordinator that they are for, declared once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.admin_client import AdminTarget

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

_TARGET_OPTIONS = {"url": UrlOption, "admin_key_file": KeyFileOption, "state": StateOption}


def for_coordinator(command: Callable[..., None]) -> Callable[..., None]:
    """The command with options in place of its parameter `target`, which is found by them."""

    @functools.wraps(command)
    def with_options(*, url: str | None, admin_key_file: Path | None, state: Path | None, **given: Any) -> None:
        command(target=AdminTarget.found(url=url, key_file=admin_key_file, state=state), **given)

    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "target"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=option)
        for name, option in _TARGET_OPTIONS.items()
    ]
    with_options.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return with_options
