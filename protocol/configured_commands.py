"""Commands that take from `brigade.toml` what their options don't say: one mechanism for the three programs.

A program says once which sections its commands read (`take_config`); options are found by their own names, so that
a new option is a new key. An option goes before a variable of the environment, that before the file, that before
the default.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from protocol.config_file import FILE_NAME, FILE_VARIABLE, ConfigFile, found_config, shown_path
from protocol.config_shown import ShownOption, settings_text
from protocol.config_values import FromFile, OptionKind, Section, ValueKind, checked_keys, counting, keys_for
from protocol.errors import BrigadeError, ConfigError
from protocol.option_values import Parameter, PlainGroup, read_plainly

_OWN = ("config", "show-config")
_META = "protocol.configured_commands"
_OPTION_IN_TEXT = re.compile(r"(?<![\w-])--([a-z][a-z-]*[a-z])")


@dataclass(frozen=True, slots=True, kw_only=True)
class _InForce:
    """What a command that runs took from which file."""

    file: ConfigFile | None
    sections: tuple[Section, ...]
    taken: Mapping[str, FromFile]
    """By the options' keys."""
    is_only_shown: bool


def take_config(app: typer.Typer, *sections: Section) -> None:
    """Have all commands of `app` take values from these sections. Called once, when all commands are there."""
    if not (isinstance(app.info.cls, type) and issubclass(app.info.cls, PlainGroup)):
        app.info.cls = PlainGroup
    for command in app.registered_commands:
        command.cls = ConfiguredCommand
        command.context_settings = {**(command.context_settings or {}), "obj": sections}
    for group in app.registered_groups:
        if group.typer_instance is not None:
            take_config(group.typer_instance, *sections)


def taken_from_file(context: typer.Context) -> dict[str, str]:
    """Where each option stands that the running command took from the file, for people; by names with '_'."""
    in_force: _InForce | None = context.meta.get(_META)
    if in_force is None:
        return {}
    return {key.replace("-", "_"): f"{key} in {each.where}" for key, each in in_force.taken.items()}


class ConfiguredCommand(TyperCommand):
    """A command with `--config` and `--show-config`, if a section has keys for it."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        options = options_of(self)
        self._keys = {section.name: keys_for(section, name, options) for section in self.context_settings["obj"]}
        self._is_configured = any(self._keys.values())
        if self._is_configured:
            self.params = [*self.params, *_own_options()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, the file's values being the defaults."""
        read_plainly(cast("Sequence[Parameter]", self.get_params(ctx)))
        if ctx.resilient_parsing or not self._is_configured:
            return super().parse_args(ctx, args)
        said, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        if said.get("help"):
            return super().parse_args(ctx, args)
        in_force = self._in_force(ctx, said)
        ctx.meta[_META] = in_force
        options = options_of(self)
        ctx.default_map = {options[key].parameter: each.value for key, each in in_force.taken.items()}
        with _explained(in_force):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, or only show what it would run with."""
        in_force: _InForce | None = ctx.meta.get(_META)
        if in_force is None:
            return super().invoke(ctx)
        if in_force.is_only_shown:
            sys.stdout.write(self._settings_text(ctx, in_force))
            return None
        if in_force.file is not None and any(
            section.is_announced and self.name in section.commands for section in in_force.sections
        ):
            sys.stderr.write(f"settings from {shown_path(in_force.file.path)}\n")
        with _explained(in_force):
            return super().invoke(ctx)

    def _in_force(self, ctx: Any, said: Mapping[str, Any]) -> _InForce:
        given = said.get("_config")
        file = found_config(None if given is None else Path(given), os.environ)
        options = options_of(self)
        sections = sorted(ctx.obj, key=lambda section: self.name not in section.commands)  # its own first
        taken: dict[str, FromFile] = {}
        if file is not None:
            for section in sections:
                checked_keys(file, section.name, _all_keys(section, ctx.find_root().command))
            names = {f"--{key}" for key, option in options.items() if said.get(option.parameter) is not None}
            keys = [(section, self._keys[section.name]) for section in sections]
            taken = counting(file, keys, options, given=names, environ=os.environ)
        return _InForce(
            file=file, sections=tuple(sections), taken=taken, is_only_shown=bool(said.get("_show_config"))
        )

    def _settings_text(self, ctx: Any, in_force: _InForce) -> str:
        parameters = {_key_of(parameter): parameter for parameter in _parameters(self)}
        keys = set().union(*self._keys.values())
        options = [
            ShownOption(
                key=key,
                value=ctx.params.get(parameter.name),
                is_given=ctx.get_parameter_source(parameter.name).name == "COMMANDLINE",
                help=parameter.help or "",
            )
            for key, parameter in parameters.items()
            if key in keys
        ]
        where = "no file" if in_force.file is None else shown_path(in_force.file.path)
        heading = f"# {ctx.command_path}: what is in force, and where it comes from ({where})"
        return settings_text(heading, in_force.sections, options, in_force.taken, os.environ)


def options_of(command: Any) -> dict[str, OptionKind]:
    """The options of a command by the keys that they are in a file, and arguments of which there may be several."""
    return {
        _key_of(parameter): OptionKind(
            parameter=parameter.name,
            kind=_kind_of(parameter),
            takes_several=parameter.nargs == -1 or parameter.multiple,
        )
        for parameter in _parameters(command)
    }


def _parameters(command: Any) -> list[Parameter]:
    found = cast("Sequence[Parameter]", command.params)
    options = [each for each in found if isinstance(each, TyperOption) or each.nargs == -1]
    return [each for each in options if _key_of(each) not in _OWN]


def _key_of(parameter: Parameter) -> str:
    if isinstance(parameter, TyperArgument):
        return parameter.name.replace("_", "-")
    return max(parameter.opts, key=len).lstrip("-")


def _kind_of(parameter: Parameter) -> ValueKind:
    if isinstance(parameter, TyperOption) and parameter.is_flag:
        return "switch"
    descriptor = parameter.type_descriptor
    if descriptor.parameter_info.parser is not None:
        return "size" if descriptor.annotation is int else "text"
    if descriptor.annotation is int:
        return "whole number"
    if descriptor.annotation is float:
        return "number"
    return "path" if descriptor.is_path else "text"


def _all_keys(section: Section, root: TyperGroup) -> dict[str, OptionKind]:
    """Whatever may stand in a section, for whichever command."""
    found: dict[str, OptionKind] = {}
    for command in _commands_of(root):
        options = options_of(command)
        found |= {key: options[key] for key in keys_for(section, command.name, options)}
    return found


def _commands_of(group: TyperGroup) -> Iterator[Any]:
    for command in group.commands.values():
        if isinstance(command, TyperGroup):
            yield from _commands_of(command)
        else:
            yield command


@contextmanager
def _explained(in_force: _InForce) -> Iterator[None]:
    """Errors about a value that the file gave say where it stands: the operator may have typed no option at all."""
    try:
        yield
    except typer.BadParameter as exc:
        each = next((each for key, each in in_force.taken.items() if _is_about(exc, key)), None)
        if each is None:
            raise
        raise ConfigError(f"{each.where}: [{each.section}] {each.key}: {exc.message}") from exc
    except BrigadeError as exc:
        named = (in_force.taken.get(key) for key in _OPTION_IN_TEXT.findall(exc.message))
        each = next((each for each in named if each is not None), None)
        if each is None:
            raise
        text = f"{exc.message} (--{each.key} comes from {each.where})"
        raise type(exc)(text, retry_after_s=exc.retry_after_s) from exc


def _is_about(exc: typer.BadParameter, key: str) -> bool:
    return exc.param is not None and _key_of(cast("Parameter", exc.param)) == key


@cache
def _own_options() -> list[Any]:
    """`--config` and `--show-config`, made once by typer as it makes all options."""
    app = typer.Typer(add_completion=False)

    @app.command()
    def _options(
        *,
        _config: Annotated[
            Path | None,
            typer.Option(
                "--config",
                metavar="FILE",
                expose_value=False,
                show_default=False,
                help=f"Take from this file what neither options nor variables say. Else {FILE_VARIABLE}, else "
                f"the user's own {FILE_NAME}.",
            ),
        ] = None,
        _show_config: Annotated[
            bool,
            typer.Option(
                "--show-config",
                expose_value=False,
                help=f"Only print what is in force and where it comes from, as a {FILE_NAME}.",
            ),
        ] = False,
    ) -> None:
        pass

    return list(typer.main.get_command(app).params)
