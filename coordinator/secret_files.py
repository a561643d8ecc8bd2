"""The secrets that rotate, join secret and signing keys: their files, their dates, and which of them count now.

Whatever is rotated, what counted before is written down first, and what is new after it: whoever dies in between
leaves the old one in force. In memory all of it is replaced at once, when the files are written, so that readers in
other threads see the old or the new. What no longer counts is removed from the disk too; of join secrets a
fingerprint is kept, by which one that was rotated away is known again if somebody gives it at a start.
Everything here blocks for milliseconds: call it in a thread.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal, TypeVar

import msgspec

from coordinator import state_folder as names
from coordinator.state_folder import StateFolder
from protocol.errors import ConflictError, StorageError
from protocol.handshake import checked_secret, join_key

GRACE = timedelta(days=8)
"""A replaced signing key or join secret is still accepted for so long: longer than a session token lives."""
MAX_PREVIOUS = 16
"""Replaced ones that count still: each is tried with every proof."""
MAX_RETIRED = 1000
_FINGERPRINT_LABEL = b"brigade retired join secret\0"

_T = TypeVar("_T")
Rotation = Literal["join_secret_rotated", "signing_key_rotated"]
"""As the audit log has it."""


class DatedSecret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A secret with its dates, as it is in the state folder."""

    value: str
    created_at: datetime
    retired_at: datetime | None = None
    ends_at: datetime | None = None
    """When it counts no longer; None: `GRACE` after it was retired."""

    def __repr__(self) -> str:
        return f"DatedSecret(created_at={self.created_at}, retired_at={self.retired_at}, ends_at={self.ends})"

    @property
    def ends(self) -> datetime | None:
        """When it counts no longer; None while it isn't retired."""
        if self.retired_at is None:
            return None
        return self.ends_at if self.ends_at is not None else self.retired_at + GRACE


class _Retired(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a join secret that was rotated away."""

    fingerprint: str
    retired_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _InForce:
    """Everything at one moment."""

    join_secret: str = field(repr=False)
    previous: tuple[DatedSecret, ...]
    signing: tuple[DatedSecret, ...]
    retired: tuple[_Retired, ...]
    as_of: datetime
    join_keys: tuple[bytes, ...] = field(default=(), repr=False)


class SecretFiles:
    """Join secret and signing keys of one state folder; what is missing is made.

    Args:
        folder: where they are kept.
        now: the time, UTC.
        given: the join secret that was given at the start; None: the one in the folder.

    Raises:
        ConfigError: the join secret is too weak.
        StorageError: a file is damaged or can't be written.
    """

    def __init__(self, folder: StateFolder, now: datetime, given: str | None) -> None:
        self._folder = folder
        self._changing = threading.Lock()
        self.has_new_secret = False
        """Whether this start made the join secret."""
        self.is_given = False
        """Whether the join secret in force is the one that was given."""
        self.given_was_retired_at: datetime | None = None
        """When the one that was given had been rotated away: then it doesn't count, and the folder's does."""
        signing = self._settled_signing_keys(now)
        retired = self._read(names.RETIRED_SECRETS, tuple[_Retired, ...]) or ()
        join_secret = self._settled_secret(given, retired)
        previous = self._read(names.PREVIOUS_SECRETS, tuple[DatedSecret, ...]) or ()
        in_force = _InForce(join_secret=join_secret, previous=previous, signing=signing, retired=retired, as_of=now)
        self._in_force = _published(_without_cut_rotation(in_force))
        self.remove_expired(now)

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """Keys that verify, oldest first; the last one signs."""
        in_force = self._in_force
        return tuple(bytes.fromhex(key.value) for key in _counting(in_force.signing, in_force.as_of))

    @property
    def join_keys(self) -> tuple[bytes, ...]:
        """MAC keys of the join secret (first) and of the previous ones that still admit."""
        return self._in_force.join_keys

    @property
    def join_secret_dates(self) -> tuple[DatedSecret, ...]:
        """The join secrets that were replaced and still admit, without their values, newest first."""
        return tuple(_without_value(each) for each in reversed(self._in_force.previous))

    @property
    def join_secret_since(self) -> datetime | None:
        """When the join secret in force was made by rotation; None: it is the first, or was given."""
        retired = self._in_force.retired
        return retired[-1].retired_at if retired and not self.is_given else None

    @property
    def rotated_at(self) -> dict[Rotation, datetime | None]:
        """When each was last rotated, or made if it never was; None: it was given, or made with the folder."""
        retired, signing = self._in_force.retired, self._in_force.signing
        return {
            "join_secret_rotated": retired[-1].retired_at if retired else None,
            "signing_key_rotated": signing[-1].created_at,
        }

    @property
    def signing_key_dates(self) -> tuple[DatedSecret, ...]:
        """The signing keys that verify, without their values, newest first."""
        in_force = self._in_force
        return tuple(_without_value(key) for key in reversed(_counting(in_force.signing, in_force.as_of)))

    def rotate_join_secret(self, now: datetime, grace: timedelta = GRACE) -> str:
        """Make a new join secret, and return it; the old ones admit for `grace` at most, not at all if it is zero.

        Raises:
            ConflictError: too many old ones admit still.
            StorageError: it can't be written; all is as it was.
        """
        with self._changing:
            old, new = self._in_force, secrets.token_urlsafe(32)
            dated = DatedSecret(value=old.join_secret, created_at=self.join_secret_since or now)
            previous = _shortened((*old.previous, dated), now, grace)
            _check_number(previous, "join secrets admit")
            gone = _Retired(fingerprint=_fingerprint(old.join_secret), retired_at=now)
            retired = (*old.retired, gone)[-MAX_RETIRED:]
            if self.is_given:  # else whoever dies after the next lines would leave the folder's own in force
                self._folder.write(names.JOIN_SECRET, old.join_secret)
            self._write(names.PREVIOUS_SECRETS, previous)
            self._write(names.RETIRED_SECRETS, retired)
            self._folder.write(names.JOIN_SECRET, new)
            self.is_given = False
            self._in_force = _published(
                replace(old, join_secret=new, previous=previous, retired=retired, as_of=max(now, old.as_of))
            )
            return new

    def rotate_signing_key(self, now: datetime, grace: timedelta = GRACE) -> None:
        """Sign with a new key from now on; the old ones verify for `grace` at most, not at all if it is zero.

        Raises:
            ConflictError, StorageError: as `rotate_join_secret`.
        """
        with self._changing:
            old = self._in_force
            kept = _shortened(_counting(old.signing, now), now, grace)
            _check_number(kept, "signing keys verify")
            signing = (*kept, _new_signing_key(now))
            self._write(names.SIGNING_KEYS, signing)
            self._in_force = replace(old, signing=signing, as_of=max(now, old.as_of))

    def remove_expired(self, now: datetime) -> None:
        """Take what counts no longer out of the memory and off the disk. StorageError if that can't be written."""
        with self._changing:
            old = self._in_force
            current = replace(
                old, previous=_counting(old.previous, now), signing=_counting(old.signing, now), as_of=now
            )
            if current.previous != old.previous:
                self._write(names.PREVIOUS_SECRETS, current.previous)
            if current.signing != old.signing:
                self._write(names.SIGNING_KEYS, current.signing)
            self._in_force = _published(current)

    def _settled_signing_keys(self, now: datetime) -> tuple[DatedSecret, ...]:
        found = self._read(names.SIGNING_KEYS, tuple[DatedSecret, ...])
        if not found:
            found = (_new_signing_key(now),)
            self._write(names.SIGNING_KEYS, found)
        for key in found:
            if len(key.value) != 64 or not set(key.value) <= set("0123456789abcdef"):
                raise damaged(self._folder, names.SIGNING_KEYS)
        return found

    def _settled_secret(self, given: str | None, retired: Sequence[_Retired]) -> str:
        found = self._folder.read(names.JOIN_SECRET)
        if given is not None:
            checked = checked_secret(given)
            ends = {each.fingerprint: each.retired_at for each in retired}
            self.given_was_retired_at = ends.get(_fingerprint(checked)) if found not in (None, checked) else None
            if self.given_was_retired_at is None:
                self.is_given = True
                return checked
        if found is None:  # an empty file is no invitation: it is checked, and refused
            found = secrets.token_urlsafe(32)
            self.has_new_secret = True
            self._folder.write(names.JOIN_SECRET, found)
        return checked_secret(found)

    def _read(self, name: str, kind: type[_T]) -> _T | None:
        text = self._folder.read(name)
        try:
            return None if text is None else msgspec.json.decode(text, type=kind)
        except msgspec.DecodeError as exc:
            raise damaged(self._folder, name) from exc

    def _write(self, name: str, values: Iterable[msgspec.Struct]) -> None:
        self._folder.write(name, msgspec.json.encode(tuple(values)).decode())


def damaged(folder: StateFolder, name: str) -> StorageError:
    """The error of a file that can't be used."""
    return StorageError(
        f"{folder.path(name)} is damaged or missing: restore the state folder from a backup, or move it "
        "away to begin a new cluster (every worker and client must then get new credentials)"
    )


def _published(in_force: _InForce) -> _InForce:
    """With the keys that joining workers are asked to know worked out; each once."""
    values = (in_force.join_secret, *(each.value for each in reversed(in_force.previous)))
    return replace(in_force, join_keys=tuple(join_key(value) for value in dict.fromkeys(values)))


def _without_cut_rotation(found: _InForce) -> _InForce:
    """Whoever died before the new join secret was written left the old one in force: it isn't retired."""
    is_cut = bool(found.retired) and found.retired[-1].fingerprint == _fingerprint(found.join_secret)
    retired = found.retired[:-1] if is_cut else found.retired
    previous = tuple(each for each in found.previous if not secrets.compare_digest(each.value, found.join_secret))
    return replace(found, retired=retired, previous=previous)


def _counting(values: Iterable[DatedSecret], now: datetime) -> tuple[DatedSecret, ...]:
    return tuple(value for value in values if value.ends is None or now < value.ends)


def _shortened(values: Iterable[DatedSecret], now: datetime, grace: timedelta) -> tuple[DatedSecret, ...]:
    """All of them retired, none of them counting for longer than `grace` from now."""
    retired = (
        msgspec.structs.replace(
            value, retired_at=value.retired_at or now, ends_at=min(value.ends or now + grace, now + grace)
        )
        for value in values
    )
    return _counting(retired, now)


def _check_number(values: Sequence[DatedSecret], what: str) -> None:
    if len(values) > MAX_PREVIOUS:
        ends = min(value.ends for value in values if value.ends is not None)
        raise ConflictError(
            f"{len(values) - 1} older {what} still, {MAX_PREVIOUS} can: end them at once (--grace 0), or wait "
            f"until {ends:%Y-%m-%d %H:%M} UTC"
        )


def _new_signing_key(now: datetime) -> DatedSecret:
    return DatedSecret(value=secrets.token_bytes(32).hex(), created_at=now)


def _without_value(secret: DatedSecret) -> DatedSecret:
    return msgspec.structs.replace(secret, value="")


def _fingerprint(secret: str) -> str:
    # it has the entropy of a key: no slow hash is needed
    return hashlib.sha256(_FINGERPRINT_LABEL + secret.encode()).hexdigest()
