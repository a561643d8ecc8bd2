"""The cluster's trust anchors: CA, the coordinator's own certificate, signing keys, the join secret's MAC keys.

All of it is made at the first start and lives in the state folder, never in the repository or the database. The
join secret only admits and signs nothing; signing keys rotate, and old ones verify until they are retired for good.
Everything here blocks for milliseconds (files, key generation): open it in a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator import state_folder as names
from coordinator.certificates import (
    ca_certificate,
    certificate_for,
    subject_names,
)
from coordinator.state_folder import StateFolder
from protocol.errors import StorageError, WrongSecretError
from protocol.handshake import checked_secret, join_key
from protocol.ids import CoordinatorId, WorkerId
from protocol.private_keys import key_from_pem, key_to_pem, new_key, public_key_der
from protocol.tls import COORDINATOR_NAME, fingerprint, worker_id_of_key, worker_name

SERVER_LIFE = timedelta(days=365)
SERVER_RENEWAL = timedelta(days=60)
"""The coordinator's certificate is renewed at a start that finds it good for less."""
WORKER_LIFE = timedelta(days=90)
GRACE = timedelta(days=8)
"""A replaced signing key or join secret is still accepted for so long: longer than a session token lives."""


class _Dated(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret with its dates, as it is in the state folder."""

    value: str
    created_at: datetime
    retired_at: datetime | None = None

    def __repr__(self) -> str:
        return f"_Dated(created_at={self.created_at}, retired_at={self.retired_at})"


class Authority:
    """What the coordinator proves itself with and admits others by.

    Args:
        folder: where all of it is kept; what is missing is made.
        now: the time, UTC.
        secret: the join secret; None: the one in the folder.
        hosts: host names and addresses by which the coordinator is reached, beside the fixed ones.

    Raises:
        ConfigError: the join secret is too weak.
        StorageError: a file is damaged or can't be written.
    """

    def __init__(
        self, folder: StateFolder, *, now: datetime, secret: str | None = None, hosts: Sequence[str] = ()
    ) -> None:
        self._folder = folder
        self.has_new_secret = False
        """Whether this start made the join secret."""
        self.coordinator_id = self._settled_id()
        self._ca_key, self._ca = self._settled_ca(now)
        self.ca_pem = self._ca.public_bytes(serialization.Encoding.PEM).decode()
        self.ca_fingerprint = fingerprint(self._ca.public_bytes(serialization.Encoding.DER)).hex()
        """SHA-256 of the CA's certificate (DER), hex: what API keys pin."""
        self.server_certificate: Path = folder.path(names.SERVER_CERTIFICATE)
        self.server_key: Path = folder.path(names.SERVER_KEY)
        self.server_fingerprint: bytes = self._settled_server(now, hosts)
        """SHA-256 of the certificate that joining workers are shown: it goes into the join proof."""
        self._signing_keys = self._settled_signing_keys(now)
        self._join_secret = self._settled_secret(secret)
        self._previous_secrets = self._read_dated(names.PREVIOUS_SECRETS)
        self._opened_at = now

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """Keys of session tokens and tickets that verify, oldest first; the last one signs.

        What `GRACE` has run out for meanwhile is left out from the next start or rotation on.
        """
        return tuple(bytes.fromhex(key.value) for key in _still_valid(self._signing_keys, self._opened_at))

    @property
    def join_keys(self) -> tuple[bytes, ...]:
        """MAC keys of the join secret (first) and of the previous ones that still admit."""
        previous = [key.value for key in _still_valid(self._previous_secrets, self._opened_at)]
        return tuple(join_key(secret) for secret in (self._join_secret, *reversed(previous)))

    def issue_worker_certificate(self, csr_pem: str, worker_id: WorkerId, now: datetime) -> str:
        """A certificate (PEM) for the key of a certificate request; everything else in the request is ignored.

        Raises:
            WrongSecretError: the request isn't signed by its key, or the worker's id isn't that key's.
        """
        refused = WrongSecretError("the join request doesn't verify")
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
            public_key = request.public_key()
            is_signed = request.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise refused from exc
        if not is_signed or not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise refused
        if worker_id_of_key(public_key_der(public_key)) != worker_id:
            raise refused
        certificate = certificate_for(
            public_key,
            common_name=worker_id,
            sans=(x509.DNSName(worker_name(worker_id)),),
            issuer=(self._ca, self._ca_key),
            now=now,
            life=WORKER_LIFE,
            is_client=True,
        )
        return certificate.public_bytes(serialization.Encoding.PEM).decode()

    def rotate_signing_key(self, now: datetime) -> None:
        """Sign with a new key from now on; the old ones verify until `GRACE` is over."""
        kept = _retired(_still_valid(self._signing_keys, now), now)
        self._signing_keys = (*kept, _Dated(value=secrets.token_bytes(32).hex(), created_at=now))
        self._opened_at = now
        self._write_dated(names.SIGNING_KEYS, self._signing_keys)

    def rotate_join_secret(self, now: datetime) -> None:
        """Make a new join secret; the old ones admit until `GRACE` is over."""
        old = _Dated(value=self._join_secret, created_at=now, retired_at=now)
        self._previous_secrets = (*_still_valid(self._previous_secrets, now), old)
        self._write_dated(names.PREVIOUS_SECRETS, self._previous_secrets)
        self._join_secret = secrets.token_urlsafe(32)
        self._opened_at = now
        self._folder.write(names.JOIN_SECRET, self._join_secret)

    def _settled_id(self) -> CoordinatorId:
        found = self._folder.read(names.COORDINATOR_ID)
        if not found:
            found = f"c-{secrets.token_hex(8)}"
            self._folder.write(names.COORDINATOR_ID, found)
        return CoordinatorId(found)

    def _settled_ca(self, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        pem = self._folder.read(names.CA_CERTIFICATE)
        if pem is None:  # a key without certificate is from a first start that was interrupted
            key = new_key()
            certificate = ca_certificate(key, self.coordinator_id, now)
            self._folder.write(names.CA_KEY, key_to_pem(key))
            self._folder.write(names.CA_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM).decode())
            return key, certificate
        key_pem = self._folder.read(names.CA_KEY)
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
            key = key_from_pem(key_pem or "")
        except ValueError as exc:
            raise self._damaged(names.CA_KEY if not key_pem else names.CA_CERTIFICATE) from exc
        if key.public_key() != certificate.public_key():
            raise self._damaged(names.CA_KEY)
        return key, certificate

    def _settled_server(self, now: datetime, hosts: Sequence[str]) -> bytes:
        """SHA-256 of the coordinator's certificate, which is made if it is missing, ends soon or lacks a name."""
        sans = (x509.DNSName(COORDINATOR_NAME), *subject_names(("localhost", "127.0.0.1", *hosts)))
        certificate = self._usable_server(now, sans)
        if certificate is None:
            key = new_key()
            certificate = certificate_for(
                key.public_key(),
                common_name=COORDINATOR_NAME,
                sans=sans,
                issuer=(self._ca, self._ca_key),
                now=now,
                life=SERVER_LIFE,
                is_client=False,
            )
            self._folder.write(names.SERVER_KEY, key_to_pem(key))
            self._folder.write(
                names.SERVER_CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM).decode()
            )
        return fingerprint(certificate.public_bytes(serialization.Encoding.DER))

    def _usable_server(self, now: datetime, sans: Sequence[x509.GeneralName]) -> x509.Certificate | None:
        pem, key_pem = self._folder.read(names.SERVER_CERTIFICATE), self._folder.read(names.SERVER_KEY)
        try:
            certificate = x509.load_pem_x509_certificate((pem or "").encode())
            key = key_from_pem(key_pem or "")
            certificate.verify_directly_issued_by(self._ca)
            present = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except Exception:  # noqa: BLE001 - whatever is wrong with it (also InvalidSignature), a new one mends it
            return None
        is_current = certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc - SERVER_RENEWAL
        matches = key.public_key() == certificate.public_key() and set(sans) <= set(present)
        return certificate if is_current and matches else None

    def _settled_signing_keys(self, now: datetime) -> tuple[_Dated, ...]:
        found = self._read_dated(names.SIGNING_KEYS)
        if not found:
            found = (_Dated(value=secrets.token_bytes(32).hex(), created_at=now),)
            self._write_dated(names.SIGNING_KEYS, found)
        for key in found:
            if len(key.value) != 64 or not set(key.value) <= set("0123456789abcdef"):
                raise self._damaged(names.SIGNING_KEYS)
        return found

    def _settled_secret(self, given: str | None) -> str:
        if given is not None:
            return checked_secret(given)
        found = self._folder.read(names.JOIN_SECRET)
        if found is None:  # an empty file is no invitation: it is checked, and refused
            found = secrets.token_urlsafe(32)
            self.has_new_secret = True
            self._folder.write(names.JOIN_SECRET, found)
        return checked_secret(found)

    def _read_dated(self, name: str) -> tuple[_Dated, ...]:
        text = self._folder.read(name)
        if text is None:
            return ()
        try:
            return msgspec.json.decode(text, type=tuple[_Dated, ...])
        except msgspec.DecodeError as exc:
            raise self._damaged(name) from exc

    def _write_dated(self, name: str, values: Sequence[_Dated]) -> None:
        self._folder.write(name, msgspec.json.encode(values).decode())

    def _damaged(self, name: str) -> StorageError:
        return StorageError(
            f"{self._folder.path(name)} is damaged or missing: restore the state folder from a backup, or move it "
            "away to begin a new cluster (every worker and client must then get new credentials)"
        )


def _still_valid(values: Sequence[_Dated], now: datetime) -> tuple[_Dated, ...]:
    return tuple(value for value in values if value.retired_at is None or now < value.retired_at + GRACE)


def _retired(values: Sequence[_Dated], now: datetime) -> tuple[_Dated, ...]:
    return tuple(msgspec.structs.replace(value, retired_at=value.retired_at or now) for value in values)
