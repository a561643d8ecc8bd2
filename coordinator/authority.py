"""The cluster's trust anchors: CA, the coordinator's own certificate, signing keys, the join secret's MAC keys.

All of it is made at the first start and lives in the state folder, never in the repository or the database. The
join secret only admits and signs nothing; it and the signing keys rotate (`secret_files`).
Everything here blocks for milliseconds (files, key generation): open it in a thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import AttributeOID

from coordinator import state_folder as names
from coordinator.certificates import (
    ca_certificate,
    certificate_for,
    subject_names,
)
from coordinator.secret_files import SecretFiles, damaged
from coordinator.state_folder import StateFolder
from protocol.errors import WrongSecretError
from protocol.ids import CoordinatorId, InviteId, WorkerId
from protocol.invites import INVITE_KEY_BYTES
from protocol.private_keys import key_from_pem, key_to_pem, new_key, public_key_der
from protocol.tls import COORDINATOR_NAME, fingerprint, worker_id_of_key, worker_name

SERVER_LIFE = timedelta(days=365)
SERVER_RENEWAL = timedelta(days=60)
"""The coordinator's certificate is renewed at a start that finds it good for less."""
WORKER_LIFE = timedelta(days=90)


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
        self.coordinator_id = self._settled_id()
        self._ca_key, self._ca = self._settled_ca(now)
        self.ca_pem = self._ca.public_bytes(serialization.Encoding.PEM).decode()
        self.ca_fingerprint = fingerprint(self._ca.public_bytes(serialization.Encoding.DER)).hex()
        """SHA-256 of the CA's certificate (DER), hex: what API keys pin."""
        self.server_certificate: Path = folder.path(names.SERVER_CERTIFICATE)
        self.server_key: Path = folder.path(names.SERVER_KEY)
        self.server_fingerprint: bytes = self._settled_server(now, hosts)
        """SHA-256 of the certificate that joining workers are shown: it goes into the join proof."""
        self.secrets = SecretFiles(folder, now, secret)
        """Join secret and signing keys, which rotate."""

    @property
    def signing_keys(self) -> tuple[bytes, ...]:
        """Keys of session tokens and tickets that verify, oldest first; the last one signs."""
        return self.secrets.signing_keys

    @property
    def join_keys(self) -> tuple[bytes, ...]:
        """MAC keys of the join secret (first) and of the previous ones that still admit."""
        return self.secrets.join_keys

    def invite_key(self, invite_id: InviteId) -> bytes:
        """The MAC key of an invite, derived: nothing in the database lets anybody in, and none tells another's.

        From the CA's key, which never rotates: workers come in again by their invites for as long as they are.
        """
        root = self._ca_key.private_numbers().private_value.to_bytes(32, "big")
        info = b"invite key for " + invite_id.encode()
        return HKDF(algorithm=SHA256(), length=INVITE_KEY_BYTES, salt=b"brigade", info=info).derive(root)

    def issue_worker_certificate(
        self, csr_pem: str, worker_id: WorkerId, now: datetime, *, challenge: str | None = None
    ) -> str:
        """A certificate (PEM) for the key of a certificate request; everything else in the request is ignored.

        But its challenge password must be `challenge`, unless that is None.

        Raises:
            WrongSecretError: the request isn't signed by its key, or not for this challenge, or the worker's id
                isn't that key's.
        """
        refused = WrongSecretError("the join request doesn't verify")
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
            public_key = request.public_key()
            is_signed = request.is_signature_valid
        except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as exc:
            raise refused from exc
        if not is_signed or not isinstance(public_key, ec.EllipticCurvePublicKey):
            raise refused
        if challenge is not None and _challenge_of(request) != challenge.encode():
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
            raise damaged(self._folder, names.CA_KEY if not key_pem else names.CA_CERTIFICATE) from exc
        if key.public_key() != certificate.public_key():
            raise damaged(self._folder, names.CA_KEY)
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


def _challenge_of(request: x509.CertificateSigningRequest) -> bytes | None:
    try:
        return request.attributes.get_attribute_for_oid(AttributeOID.CHALLENGE_PASSWORD).value
    except (ValueError, x509.AttributeNotFound):
        return None
