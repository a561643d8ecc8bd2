"""Checks of a machine and its surroundings: what was looked at, what was seen, and the mend. For the doctors.

A check never raises: whatever goes wrong in it is what it found.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
from rich.console import Group
from rich.table import Table
from rich.text import Text

from protocol.errors import BrigadeError

CHECK_S = 5.0
"""For one check; what takes longer is broken, or as good as."""

CheckStatus = Literal["ok", "warn", "fail"]
_STYLES: dict[CheckStatus, str] = {"ok": "green", "warn": "yellow", "fail": "bold red"}

T = TypeVar("T")


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a doctor's report; with `--json` it is in the list as it is."""

    name: str
    status: CheckStatus
    seen: str
    """A sentence for people, with the numbers; never a secret."""
    mend: str = ""
    """What to do about it; empty if there is nothing to do."""


class CheckList(msgspec.Struct, frozen=True, kw_only=True):
    """A doctor's report, as `--json` prints it."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found. `Check` is this with a name."""

    status: CheckStatus
    seen: str
    mend: str = ""


def fine(seen: str) -> Finding:
    """Nothing to do."""
    return Finding(status="ok", seen=seen)


def doubtful(seen: str, mend: str) -> Finding:
    """It may do, but should be looked at; or it could not be looked at."""
    return Finding(status="warn", seen=seen, mend=mend)


def broken(seen: str, mend: str) -> Finding:
    """It can't go on like this."""
    return Finding(status="fail", seen=seen, mend=mend)


async def checked(
    name: str, look: Callable[[], Awaitable[Finding]], mend: str, *, deadline_s: float = CHECK_S
) -> Check:
    """Carry a check out; `mend` is what to do if it ends in an error or not at all."""
    try:
        async with asyncio.timeout(deadline_s):
            found = await look()
    except TimeoutError:
        found = broken(f"no result within {deadline_s:g} s", mend)
    except BrigadeError as exc:
        found = broken(exc.message, mend)
    except Exception as exc:  # noqa: BLE001 - a doctor reports what is broken, whatever it is
        found = broken(f"the check itself failed: {type(exc).__name__}: {exc}", mend)
    return Check(name=name, status=found.status, seen=found.seen, mend=found.mend)


async def in_thread(function: Callable[[], T]) -> T:
    """Call something that blocks, in a thread that nobody waits for at the end: a dead disk may hold it."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: Exception | None) -> None:
        if result.done():
            return
        if error is not None:
            result.set_exception(error)
        else:
            result.set_result(value)  # type: ignore[arg-type] # without an error there is a value

    def run() -> None:
        value: T | None = None
        error: Exception | None = None
        try:
            value = function()
        except Exception as exc:  # noqa: BLE001 - raised again where it is awaited
            error = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="check", daemon=True).start()
    return await result


def reason_of(exc: OSError) -> str:
    """The system's words for it; asyncio puts its own, with the address in them, in their place."""
    return os.strerror(exc.errno) if exc.errno is not None and exc.errno > 0 else str(exc) or type(exc).__name__


def write_problem(folder: Path) -> str | None:
    """Why nothing can be written into the folder; None if something can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as exc:
        return f"{folder} can't be written: {reason_of(exc)}"


def opened_mode(path: Path) -> int | None:
    """The permissions of a file or folder that others may look into; None if it is its owner's alone."""
    mode = path.stat().st_mode & 0o777
    return mode if os.name == "posix" and mode & 0o077 else None


def exit_code_of(checks: Iterable[Check]) -> int:
    """0, or 1 if one of the checks failed; warnings don't count."""
    return 1 if any(check.status == "fail" for check in checks) else 0


def report_table(checks: Sequence[Check]) -> Group:
    """The checks for people: a table, with each mend below what was seen, and at the end how many are bad."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "what was seen, and what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status, seen = Text(check.status, style=_STYLES[check.status]), _harmless(check.seen)
        if check.mend and check.status != "ok":
            seen += Text("\n-> ", style="bold") + _harmless(check.mend)
        table.add_row(_harmless(check.name), status, seen)
    n_bad = sum(check.status == "fail" for check in checks)
    n_doubtful = sum(check.status == "warn" for check in checks)
    style: CheckStatus = "fail" if n_bad else "warn" if n_doubtful else "ok"
    return Group(table, Text(f"{len(checks)} checks: {n_bad} failed, {n_doubtful} warnings", style=_STYLES[style]))


def _harmless(text: str) -> Text:
    return Text("".join(character if character.isprintable() else " " for character in text))
