"""`coord settings`: what can be changed while the coordinator runs. Thin over the admin API."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text

from coordinator.admin_client import AdminTarget, changed_as_read
from coordinator.cli_output import cell, plain_table, print_answer, print_done, printable
from coordinator.cli_target import MINUS_IS_A_NUMBER, JsonOption, for_coordinator
from coordinator.policy.settings import setting_named, shown
from protocol.settings_rest import ChangeSettingsRequest, SettingList, SettingValue

settings_commands = typer.Typer(
    no_args_is_help=True,
    help="Settings that can be changed while the coordinator runs. What `coord serve` was given (option or "
    "environment) goes before what is set here, and this before the defaults.",
)
_PATH = "/admin/v1/settings"
NameArgument = Annotated[str, typer.Argument(help="As `coord settings show` lists them.")]
ValueArgument = Annotated[
    str, typer.Argument(help="What it is from now on; `coord settings show` says what it may be.")
]


@settings_commands.command("show")
@for_coordinator
def show_settings(target: AdminTarget, *, as_json: JsonOption = False) -> None:
    """Show the settings: what they are, where that comes from, and what they may be."""
    found = target.ask(lambda session: session.get(_PATH, SettingList))
    print_answer(found, _table(found), as_json=as_json)


@settings_commands.command("set", context_settings=MINUS_IS_A_NUMBER)
@for_coordinator
def set_setting(
    target: AdminTarget, name: NameArgument, value: ValueArgument, *, as_json: JsonOption = False
) -> None:
    """Change a setting at once, and for every start that isn't given another value."""
    _change(target, name, setting_named(name).read(value), as_json=as_json)


@settings_commands.command("reset")
@for_coordinator
def reset_setting(target: AdminTarget, name: NameArgument, *, as_json: JsonOption = False) -> None:
    """Give up what was set here: what the coordinator was given at its start counts, else the default."""
    _change(target, setting_named(name).name, None, as_json=as_json)


def _change(target: AdminTarget, name: str, value: SettingValue | None, *, as_json: bool) -> None:
    request = ChangeSettingsRequest(settings={name: value})
    found = target.ask(lambda session: changed_as_read(session, _PATH, SettingList, request, SettingList))
    info = next(each for each in found.settings if each.name == name)
    print_done(info, f"{name} is {shown(info.value)}: {printable(info.where)}", as_json=as_json)


def _table(found: SettingList) -> Group:
    table = plain_table("setting", "value", "where from", "may be", unbroken="setting")
    for info in found.settings:
        table.add_row(info.name, shown(info.value), cell(info.where), info.allowed)
    meanings = [Text(f"  {info.name}: {printable(info.meaning)}", style="dim") for info in found.settings]
    return Group(table, *meanings)
