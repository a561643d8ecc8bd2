"""`brigade.toml`: where it is looked for, and reading it. Knows tables and lines, nothing of what the keys mean."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import platformdirs

from protocol.errors import ConfigError

FILE_NAME = "brigade.toml"
FILE_VARIABLE = "BRIGADE_CONFIG"
SECTIONS = ("coordinator", "worker", "client", "gateway")
MAX_FILE_BYTES = 2**20
_SECRET_WORDS = {"secret", "invite", "password", "passphrase", "token"}
"""A key that ends with one of them holds a secret itself."""
_URL_WITH_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_HEADER = re.compile(r"\s*\[\s*[\"']?([\w-]+)[\"']?\s*\]")
_KEY = re.compile(r"\s*[\"']?([\w-]+)[\"']?\s*=")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A file that was read; its repr shows no values, which may be secret."""

    path: Path
    lines: tuple[str, ...]
    tables: Mapping[str, Mapping[str, Any]]
    """Section to key to value; keys as options are written, `max-tokens`."""

    def __repr__(self) -> str:
        return f"ConfigFile({str(self.path)!r})"

    def where(self, section: str, key: str | None = None) -> str:
        """The file, and the line where a section begins or a key of it stands, for people."""
        line = _line_of(self.lines, section, key)
        return shown_path(self.path) if line is None else f"{shown_path(self.path)}, line {line}"


def found_config(given: Path | None, environ: Mapping[str, str]) -> ConfigFile | None:
    """The file that is meant: the given one, `BRIGADE_CONFIG`, or the user's own; if any.

    One that merely lies in the working folder isn't: it comes with whatever was cloned or unpacked there, and it
    would say whose cluster gets the prompts, and who is let in with which key.

    Raises:
        ConfigError: one was named and isn't there, or what was found can't be used; says what to do.
    """
    if given is not None:
        return _read(given, "--config")
    if named := environ.get(FILE_VARIABLE):
        return _read(Path(named).expanduser(), FILE_VARIABLE)
    own = platformdirs.user_config_path("brigade") / FILE_NAME
    # which never raises: the folder may be closed to us
    return _read(own, "the file") if os.path.isfile(own) else None


def holds_secret(key: str, value: object) -> bool:
    """Whether nobody else may read this: a secret by its name, or a URL with a password."""
    if key.rpartition("-")[2] in _SECRET_WORDS:
        return True
    return isinstance(value, str) and _URL_WITH_PASSWORD.search(value) is not None


def nearest(name: str, names: tuple[str, ...]) -> str:
    """What was probably meant, for an error: ` (did you mean x?)`, or all there are if nothing is like it."""
    matches = get_close_matches(name, names, n=1)
    return f"did you mean {matches[0]!r}?" if matches else f"there are {', '.join(sorted(names))}"


def shown_path(path: Path) -> str:
    """The path for people; what a terminal would obey is escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def _read(path: Path, named_by: str) -> ConfigFile:
    shown = shown_path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{shown} has more than {MAX_FILE_BYTES} bytes: it is no {FILE_NAME}")
        text = data.decode("utf-8-sig")
        tables = tomllib.loads(text)
    except OSError as exc:
        raise ConfigError(f"{named_by}: {shown} can't be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{shown} is not UTF-8 at byte {exc.start}") from exc
    except ValueError as exc:  # not only tomllib's own: a number may have too many digits
        raise ConfigError(f"{shown} is not TOML: {exc}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{shown} nests too deeply: no key takes an array of arrays") from exc
    lines = tuple(text.splitlines())
    found = ConfigFile(path=path.absolute(), lines=lines, tables=_checked_tables(shown, lines, tables))
    _check_mode(found, mode)
    return found


def _checked_tables(shown: str, lines: tuple[str, ...], tables: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sections, keys spelled as options are; a section that is for no program is a mistake."""
    found: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        line = _line_of(lines, name, None) or _line_of(lines, "", name)
        where = shown if line is None else f"{shown}, line {line}"
        if not isinstance(table, dict):
            raise ConfigError(f"{where}: {name!r} stands in no section; put it under one of {_brackets()}")
        if name not in SECTIONS:
            raise ConfigError(f"{where}: there is no section [{name}]; {nearest(name, SECTIONS)}")
        found[name] = {}
        for key, value in table.items():
            spelled = key.replace("_", "-")
            if spelled in found[name]:
                raise ConfigError(f"{where}: [{name}] has {spelled!r} twice, once with '_'; leave one out")
            found[name][spelled] = value
    return found


def _brackets() -> str:
    return ", ".join(f"[{name}]" for name in SECTIONS)


def _check_mode(file: ConfigFile, mode: int) -> None:
    """Refuse a secret that others can read, or put there."""
    if not mode & 0o077:
        return
    for section, table in file.tables.items():
        for key, value in table.items():
            if holds_secret(key, value):
                raise ConfigError(
                    f"{file.where(section, key)}: [{section}] {key} is a secret, and the file has mode {mode:04o}: "
                    f"others may read it. Run `chmod 600 {shown_path(file.path)}`"
                )


def _line_of(lines: tuple[str, ...], section: str, key: str | None) -> int | None:
    """The number of the line, from 1; `section` is empty before the first header. None: it is written otherwise."""
    wanted = (section, None if key is None else key.replace("_", "-"))
    current = ""
    for number, line in enumerate(lines, start=1):
        if header := _HEADER.match(line):
            current = header[1]
        found = _KEY.match(line)
        if (current, found[1].replace("_", "-") if found else None) == wanted and (header or found):
            return number
    return None
