"""The worker's state folder and the key pair in it, which is what the worker is: its id is the key's hash.

    STATE/lock             held while the worker runs
    STATE/identity.key     the private key, PEM, 0600
    STATE/certificate.pem  what the coordinator made of it last
    STATE/files/           the cache of model files

Everything here blocks: call it before the event loop is busy, or from a thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import AttributeOID, NameOID

from protocol.disk import storage_errors, write_atomically
from protocol.errors import ConfigError
from protocol.file_locks import try_lock
from protocol.ids import WorkerId
from protocol.private_keys import key_from_pem, key_to_pem, new_key, public_key_der
from protocol.tls import worker_id_of_key, worker_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A worker's key pair on disk and the id that follows from it."""

    worker_id: WorkerId
    key_path: Path
    certificate_path: Path
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    def certificate_request_pem(self, challenge: str) -> str:
        """A certificate request (PKCS#10) for this key and this worker's name, signed by the key.

        `challenge` says what for (`protocol.handshake.key_challenge`): whom it is sent to can't use it elsewhere.
        """
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.worker_id)])
        names = x509.SubjectAlternativeName([x509.DNSName(worker_name(self.worker_id))])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name).add_extension(names, critical=False)
        builder = builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, challenge.encode())
        return builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM).decode()

    def owns(self, certificate: x509.Certificate) -> bool:
        """Whether the certificate is for this key."""
        return certificate.public_key() == self._key.public_key()

    def save_certificate(self, certificate_pem: str) -> None:
        """Put the certificate beside the key, in place of an older one.

        Raises:
            StorageError: it can't be written.
        """
        with storage_errors(self.certificate_path):
            write_atomically(self.certificate_path, certificate_pem.encode())


@contextmanager
def opened_state(folder: Path) -> Iterator[None]:
    """Make the worker's state folder (0700) and keep it for this process alone.

    Raises:
        StorageError: it can't be made or written.
        ConfigError: another worker uses it.
    """
    with storage_errors(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        held = try_lock(folder / "lock")
    if held is None:
        raise ConfigError(
            f"another worker runs with the state folder {folder}: two workers on one machine need a folder "
            "each, say --state FOLDER"
        )
    try:
        yield
    finally:
        held.release()


def load_identity(folder: Path) -> Identity:
    """The identity in the state folder, made at the first start.

    Raises:
        StorageError: the key can't be read or written.
        ConfigError: the key's file holds no key of ours, or others may read it.
    """
    path = folder / "identity.key"
    with storage_errors(path):
        if not path.exists():
            write_atomically(path, key_to_pem(new_key()).encode())
        mode, data = path.stat().st_mode & 0o777, path.read_bytes()
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path} can be read by others (mode {mode:o}): chmod 600, or remove it for a new one")
    try:
        key = key_from_pem(data)
    except ValueError as exc:
        raise ConfigError(f"{path} holds no key of ours ({exc}): remove it for a new identity") from exc
    return Identity(
        worker_id=worker_id_of_key(public_key_der(key.public_key())),
        key_path=path,
        certificate_path=folder / "certificate.pem",
        _key=key,
    )
