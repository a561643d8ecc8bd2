"""What the text of an option or an argument becomes, for the kinds that our commands have: text, numbers, paths.

typer has pydantic do it, which takes a fifth of a second at the start of every command, and 10 MB for as long as a
worker or a coordinator runs. What isn't one of these kinds (a choice, say) is still left to typer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

Parameter = TyperArgument | TyperOption
_LONGEST_SHOWN = 200
"""Characters of a value that an error repeats."""
_YES, _NO = ("1", "true", "yes", "on", "t", "y"), ("", "0", "false", "no", "off", "f", "n")


@dataclass(frozen=True, slots=True)
class PlainValue:
    """Stands where typer keeps what reads a parameter's value, and is called as that is."""

    read: Callable[[Any], Any]
    """One value, which may be of its kind already: a default. Raises ValueError with what is wrong, for people."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value or values that `param` is given; None, or `()` where there may be several, if there is none.

        Raises:
            typer.BadParameter: it isn't of its kind.
        """
        takes_several = param.multiple or param.nargs == -1
        if value is None:
            return () if takes_several else None
        try:
            return [self.read(each) for each in value] if takes_several else self.read(value)
        except ValueError as exc:
            raise typer.BadParameter(str(exc), ctx=ctx, param=param) from exc


def read_plainly(parameters: Iterable[Parameter]) -> None:
    """Have those be read here whose kind is known here."""
    for parameter in parameters:
        if (read := _reader_of(parameter)) is not None:
            # there is no public place for it; a typer that keeps it elsewhere reads as it would without this
            parameter._runtime_param = PlainValue(read)  # type: ignore[assignment]  # noqa: SLF001


class PlainGroup(TyperGroup):
    """Commands beside each other: whose own options (`--version`, typer's for completion) are read here too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments. typer adds options after the group is made: so not before this."""
        read_plainly(cast("Sequence[Parameter]", self.get_params(ctx)))
        return super().parse_args(ctx, args)


def _reader_of(parameter: Parameter) -> Callable[[Any], Any] | None:
    described = parameter.type_descriptor
    kind, info = described.annotation, described.parameter_info
    if described.is_list:
        (kind,) = get_args(kind)
    if info.parser is not None:
        return info.parser
    if kind is int or kind is float:
        return None if info.clamp else _number_reader(kind, info.min, info.max)
    if kind is Path:
        is_any = info.file_okay and info.dir_okay and not (info.exists or info.writable or info.resolve_path)
        return _path if is_any and info.path_type is None else None
    if kind is bool:
        return _switch
    return str if kind is str else None


def _switch(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in _YES and word not in _NO:
        raise ValueError(f"{_shown(value)} is neither yes nor no")
    return word in _YES


def _number_reader(kind: type[int] | type[float], least: float | None, most: float | None) -> Callable[[Any], Any]:
    name = "a whole number" if kind is int else "a number"

    def number(value: Any) -> float:
        try:
            found = kind(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{_shown(value)} is not {name}") from None
        if kind is int and isinstance(value, float) and found != value:
            raise ValueError(f"{_shown(value)} is not {name}")
        if (least is not None and not found >= least) or (most is not None and not found <= most):
            raise ValueError(f"{_shown(value)} isn't {_range_text(least, most)}")
        return found

    return number


def _range_text(least: float | None, most: float | None) -> str:
    if least is None:
        return f"at most {most:.12g}"
    return f"at least {least:.12g}" if most is None else f"between {least:.12g} and {most:.12g}"


def _path(value: Any) -> Path:
    path = Path(value)
    if "\0" in str(path):  # from `brigade.toml`: an argument can't have one
        raise ValueError(f"{_shown(value)} can't be a path: it has a zero byte")
    if os.path.exists(path) and not os.access(path, os.R_OK):
        raise ValueError(f"{_shown(value)} can't be read")
    return path


def _shown(value: Any) -> str:
    text = str(value).strip()
    return repr(text) if len(text) <= _LONGEST_SHOWN else f"a text of {len(text)} characters"
