"""Which values of a `brigade.toml` count for a command: what goes before them, and of which kind they are. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from protocol.config_file import ConfigFile, nearest
from protocol.errors import ConfigError

ValueKind = Literal["switch", "whole number", "number", "size", "path", "text"]
_EXPECTED: dict[ValueKind, str] = {
    "switch": "true or false",
    "whole number": "a whole number",
    "number": "a number",
    "size": "a string such as '8GiB', or a number",
    "path": "a string, the path of a file or folder",
    "text": "a string",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table of `brigade.toml`: whose options its keys are, and what goes before them under other names."""

    name: str
    commands: tuple[str, ...]
    """Whose options are its keys."""
    shared: tuple[str, ...] = ()
    """Keys that every other command of the program takes too, if it has such an option."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The variable of the environment that says the same as a key."""
    yields_to: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Options (`--state`) and variables that say what a key says by other means: they go before it."""
    is_announced: bool = False
    """Whether its commands say at their start which file they were told by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionKind:
    """What a command line's option takes."""

    parameter: str
    """The name by which the command's function knows it."""
    kind: ValueKind
    takes_several: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FromFile:
    """A value that counts, and where it stands."""

    section: str
    key: str
    value: Any
    where: str
    """The file and, if it is known, the line."""


def checked_keys(file: ConfigFile, section: str, options: Mapping[str, OptionKind]) -> None:
    """Refuse keys that are no options of the section's commands, and values of another kind.

    Raises:
        ConfigError: says where it stands, and what was probably meant.
    """
    for key, value in file.tables.get(section, {}).items():
        if key not in options:
            hint = nearest(key, tuple(options))
            raise ConfigError(f"{file.where(section, key)}: [{section}] has no key {key!r}; {hint}")
        if not _is_of(value, options[key]):
            expected = _EXPECTED[options[key].kind]
            if options[key].takes_several:
                expected = f"an array of these: {expected}; or one"
            raise ConfigError(
                f"{file.where(section, key)}: [{section}] {key} is {_kind_word(value)}; it must be {expected}"
            )


def keys_for(section: Section, command: str | None, options: Mapping[str, OptionKind]) -> frozenset[str]:
    """The keys of a section that a command with these options takes."""
    return frozenset(options if command in section.commands else options.keys() & set(section.shared))


def counting(
    file: ConfigFile,
    sections: Sequence[tuple[Section, Set[str]]],
    options: Mapping[str, OptionKind],
    *,
    given: Set[str],
    environ: Mapping[str, str],
) -> dict[str, FromFile]:
    """The file's values that count for a command with these options, by their keys; the values are checked already.

    The first section counts that has a key, and has it for this command. `given` are the command line's options,
    such as `--state`.
    """
    found: dict[str, FromFile] = {}
    for section, keys in sections:
        for key, value in file.tables.get(section.name, {}).items():
            if key in keys and key not in found and not _goes_before(section, key, given, environ):
                found[key] = FromFile(
                    section=section.name,
                    key=key,
                    value=_as_given(value, options[key], file.path.parent),
                    where=file.where(section.name, key),
                )
    return found


def deciding_variable(section: Section, key: str, environ: Mapping[str, str]) -> str | None:
    """The variable that is set and goes before a key; None: there is none."""
    names = (section.variables.get(key, ""), *section.yields_to.get(key, ()))
    return next((name for name in names if environ.get(name)), None)


def _goes_before(section: Section, key: str, given: Set[str], environ: Mapping[str, str]) -> bool:
    instead = {f"--{key}", *section.yields_to.get(key, ())}
    return not given.isdisjoint(instead) or deciding_variable(section, key, environ) is not None


def _is_of(value: object, option: OptionKind) -> bool:
    values = value if option.takes_several and isinstance(value, list) else [value]
    return all(_is_one_of(each, option.kind) for each in values)


def _is_one_of(value: object, kind: ValueKind) -> bool:
    if kind == "switch" or isinstance(value, bool):
        return kind == "switch" and isinstance(value, bool)
    match kind:
        case "whole number":
            return isinstance(value, int)
        case "number":
            return isinstance(value, int | float)
        case "size":
            return isinstance(value, int | str)
        case "path" | "text":
            return isinstance(value, str)


def _as_given(value: Any, option: OptionKind, folder: Path) -> Any:
    """As the command line would give it: a path is relative to the file, and one value of several is a list."""
    if option.takes_several:
        values = value if isinstance(value, list) else [value]
        return [_one_as_given(each, option.kind, folder) for each in values]
    return _one_as_given(value, option.kind, folder)


def _one_as_given(value: Any, kind: ValueKind, folder: Path) -> Any:
    if kind == "path":
        return str(folder / Path(value).expanduser())
    return str(value) if kind == "size" else value


def _kind_word(value: object) -> str:
    """What the file says, without saying it: it may be secret."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case dict():
            return "a table"
        case _:
            return "a date or a time"
