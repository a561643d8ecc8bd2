"""Everything that a coordinator must keep, in one file: its secrets and its database, with their hashes.

A backup is a tar archive, readable by its owner alone:

    backup.json     what is in it: format, versions, and the SHA-256 of each of the others
    state/NAME      files of the state folder: CA, signing keys, join secrets, first API keys
    tables/NAME     the rows of a table, one JSON object a line, as they were at one moment

The rows are written from either kind of database and go into either. Model files aren't in it: they are found by
their hashes, and `coord model add` makes the same ones again. The lease isn't either: it is of the program that
ran.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec

from coordinator import state_folder as names
from protocol.errors import InvalidRequestError, StorageError
from protocol.ids import CoordinatorId

FORMAT = 1
CONTENTS = "backup.json"
STATE_FILES = (
    *(names.COORDINATOR_ID, names.CA_CERTIFICATE, names.CA_KEY, names.SERVER_CERTIFICATE, names.SERVER_KEY),
    *(names.SIGNING_KEYS, names.JOIN_SECRET, names.PREVIOUS_SECRETS, names.RETIRED_SECRETS),
    *(names.ADMIN_KEY, names.CLIENT_KEY),
)
NEEDED_STATE_FILES = (names.COORDINATOR_ID, names.CA_CERTIFICATE, names.CA_KEY, names.SIGNING_KEYS)
MAX_MEMBER_BYTES = 2**32
"""Of one part; a larger one is none of ours, or a database that wants its own tools."""

Row = Mapping[str, Any]


class Contents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`backup.json`."""

    format: int
    created_at: datetime
    program_version: str
    schema: str
    """Revision of the database's schema."""
    coordinator_id: CoordinatorId
    hashes: dict[str, str]
    """SHA-256 of each other part."""
    n_rows: dict[str, int]
    """Of each table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup as it was read and found whole."""

    contents: Contents
    state: Mapping[str, str]
    """Text of the state folder's files, by name."""
    tables: Mapping[str, Sequence[Row]]
    """Rows by table; times are datetimes in UTC, binary values bytes."""


def write_backup(
    path: Path,
    *,
    state: Mapping[str, str],
    tables: Mapping[str, Sequence[Row]],
    schema: str,
    program_version: str,
    now: datetime,
) -> Contents:
    """Write the archive: it is there whole and on the disk, or not at all. Blocks.

    Raises:
        InvalidRequestError: there is a file of this name.
        StorageError: it can't be written.
    """
    parts = {f"state/{name}": text.encode() for name, text in state.items()}
    parts |= {f"tables/{name}": b"".join(map(_line, rows)) for name, rows in tables.items()}
    contents = Contents(
        format=FORMAT,
        created_at=now,
        program_version=program_version,
        schema=schema,
        coordinator_id=CoordinatorId(state[names.COORDINATOR_ID]),
        hashes={name: hashlib.sha256(data).hexdigest() for name, data in parts.items()},
        n_rows={name: len(rows) for name, rows in tables.items()},
    )
    _write_new(path, {CONTENTS: msgspec.json.format(msgspec.json.encode(contents))} | parts, now)
    return contents


def read_backup(path: Path) -> Backup:
    """Read an archive and check all of it. Blocks.

    Raises:
        StorageError: it can't be read, isn't a backup, or isn't as it was written.
    """
    parts = _read_archive(path)
    contents = _contents(path, parts.pop(CONTENTS, None))
    found = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    wrong = sorted({name for name, _ in found.items() ^ contents.hashes.items()})
    if wrong:
        raise _damaged(path, f"{', '.join(wrong[:5])} isn't as it was written")
    state = {name[6:]: _text(path, name, data) for name, data in parts.items() if name.startswith("state/")}
    missing = [name for name in NEEDED_STATE_FILES if name not in state]
    strange = sorted(set(state) - set(STATE_FILES))
    if missing or strange:
        raise _damaged(path, f"files of the state folder are missing or strange: {', '.join(missing + strange)}")
    tables = {
        name[7:]: tuple(_rows(path, name, data)) for name, data in parts.items() if name.startswith("tables/")
    }
    if {name: len(rows) for name, rows in tables.items()} != contents.n_rows:
        raise _damaged(path, "it has other numbers of rows than it says")
    return Backup(contents=contents, state=state, tables=tables)


def _write_new(path: Path, parts: Mapping[str, bytes], now: datetime) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                _write_archive(file, parts, now)
            os.link(temporary, path)  # never over a file that is there
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError as exc:
        raise InvalidRequestError(f"{path} is there already; a backup is never written over: name another") from exc
    except OSError as exc:
        raise StorageError(
            f"the backup {path} can't be written ({exc.strerror or exc}): choose another folder or make room"
        ) from exc


def _write_archive(file: Any, parts: Mapping[str, bytes], now: datetime) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now.timestamp())
            archive.addfile(entry, io.BytesIO(data))
    file.flush()
    os.fsync(file.fileno())


def _read_archive(path: Path) -> dict[str, bytes]:
    parts: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:") as archive:
            # What a part only claims to be, as a sparse one does, is never allocated.
            most_bytes = min(MAX_MEMBER_BYTES, path.stat().st_size)
            for entry in archive:
                is_plain = entry.isreg() and not entry.issparse() and entry.size <= most_bytes
                data = archive.extractfile(entry) if is_plain else None
                if data is None or entry.name in parts:
                    raise _damaged(path, f"{entry.name[:80]!r} is no part of one")
                parts[entry.name] = data.read()
    except OSError as exc:
        raise StorageError(f"the backup {path} can't be read ({exc.strerror or exc})") from exc
    except tarfile.TarError as exc:
        raise _damaged(path, "it is no archive, or ends too early") from exc
    return parts


def _contents(path: Path, data: bytes | None) -> Contents:
    if data is None:
        raise _damaged(path, f"{CONTENTS} isn't in it")
    try:
        contents = msgspec.json.decode(data, type=Contents)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _damaged(path, f"its {CONTENTS} can't be read") from exc
    if contents.format != FORMAT:
        raise StorageError(
            f"{path} is a backup of format {contents.format} by version {contents.program_version}; this version "
            f"reads format {FORMAT}: install that one"
        )
    return contents


def _line(row: Row) -> bytes:
    return json.dumps(dict(row), default=_marked, separators=(",", ":")).encode() + b"\n"


def _marked(value: Any) -> Any:
    """What JSON has no form for. No column holds an object with such a key of its own."""
    match value:
        case datetime():
            at = value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
            return {"$time": at.isoformat()}
        case date():
            return {"$date": value.isoformat()}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case _:
            raise TypeError(f"a column holds a {type(value).__name__}")


def _unmarked(value: dict[str, Any]) -> Any:
    match value:
        case {"$time": str(text)}:
            return datetime.fromisoformat(text)
        case {"$date": str(text)}:
            return date.fromisoformat(text)
        case {"$bytes": str(text)}:
            return base64.b64decode(text)
        case _:
            return value


def _rows(path: Path, name: str, data: bytes) -> Iterator[Row]:
    for line in data.splitlines():
        try:
            row = json.loads(line, object_hook=_unmarked)
        except (ValueError, RecursionError) as exc:
            raise _damaged(path, f"{name} can't be read") from exc
        if not isinstance(row, dict):
            raise _damaged(path, f"{name} has a line that is no row")
        yield row


def _text(path: Path, name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise _damaged(path, f"{name} is no text") from exc


def _damaged(path: Path, why: str) -> StorageError:
    return StorageError(f"{path} isn't a whole backup: {why}. Nothing was restored; take another backup")
