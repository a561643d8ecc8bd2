"""A cluster CA for tests: the coordinator's kind of certificates, good for a day."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from coordinator.certificates import ca_certificate, certificate_for, subject_names
from protocol.ids import WorkerId
from protocol.private_keys import key_to_pem, new_key, public_key_der
from protocol.tls import fingerprint, worker_id_of_key, worker_name


@dataclass(frozen=True, slots=True)
class WorkerFiles:
    """A worker's identity on disk; or that of a program under another name."""

    worker_id: WorkerId
    certificate: Path
    key: Path


class TestAuthority:
    """Issues certificates as a coordinator would."""

    __test__ = False

    def __init__(self) -> None:
        self._key = new_key()
        self._certificate = ca_certificate(self._key, "test", datetime.now(UTC))
        self.ca_pem = self._certificate.public_bytes(Encoding.PEM).decode()
        self.fingerprint = fingerprint(self._certificate.public_bytes(Encoding.DER)).hex()

    def worker(self, folder: Path, dns_name: str | None = None) -> WorkerFiles:
        """A new worker with a certificate of this CA, for its own name or another."""
        key = new_key()
        worker_id = worker_id_of_key(public_key_der(key.public_key()))
        return self.issue(folder, key, worker_id, dns_name or worker_name(worker_id))

    def issue(
        self, folder: Path, key: ec.EllipticCurvePrivateKey, worker_id: WorkerId, dns_name: str
    ) -> WorkerFiles:
        """A certificate for any name."""
        certificate = certificate_for(
            key.public_key(),
            common_name=worker_id,
            sans=subject_names([dns_name]),
            issuer=(self._certificate, self._key),
            now=datetime.now(UTC),
            life=timedelta(days=1),
            is_client=True,
        )
        folder.mkdir(parents=True, exist_ok=True)
        files = WorkerFiles(worker_id, folder / f"{worker_id}.pem", folder / f"{worker_id}.key")
        files.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        files.key.write_text(key_to_pem(key))
        return files
