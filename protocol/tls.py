"""TLS as all three programs use it: 1.3 only, the cluster's own CA, names that say which program answers.

Names in certificates: the coordinator's holds `COORDINATOR_NAME`, a worker's holds `worker_name(worker_id)`; who
dials passes the name as `server_hostname`, so the standard check of a certificate's name says that the right
machine answered, whatever its address.
"""

from __future__ import annotations

import hashlib
import re
import ssl
from pathlib import Path
from typing import Any

from protocol.errors import UnauthenticatedError
from protocol.ids import WorkerId

COORDINATOR_NAME = "coordinator.brigade.internal"
_WORKER_SUFFIX = ".workers.brigade.internal"
_WORKER_ID = re.compile(r"w-[a-z2-7]{26}")


def worker_id_of_key(public_key_der: bytes) -> WorkerId:
    """The id of the worker that holds the private half of this key (SubjectPublicKeyInfo, DER).

    130 bits of its SHA-256 in base32, so that it fits a DNS label and can't be had for another key.
    """
    digest = int.from_bytes(hashlib.sha256(public_key_der).digest()[:17], "big") >> 6
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    return WorkerId("w-" + "".join(letters[digest >> (5 * i) & 31] for i in range(26)))


def is_worker_id(text: str) -> bool:
    """Whether `text` has the form of a worker's id."""
    return _WORKER_ID.fullmatch(text) is not None


def worker_name(worker_id: WorkerId) -> str:
    """The DNS name in a worker's certificate."""
    return worker_id + _WORKER_SUFFIX


def fingerprint(certificate_der: bytes) -> bytes:
    """SHA-256 of a certificate."""
    return hashlib.sha256(certificate_der).digest()


def first_contact_context() -> ssl.SSLContext:
    """For enrolment and for fetching the CA only: takes any certificate, since a fingerprint is checked next.

    Whoever uses it must bind the certificate that was shown into a MAC or compare what came through it with a
    pinned hash before trusting anything.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def client_context(ca_pem: str, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For dialling a coordinator or worker of the cluster whose CA this is; with a certificate: as a worker."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=ca_pem)
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def server_context(certificate: Path, key: Path, ca_pem: str | None = None) -> ssl.SSLContext:
    """For listening; with a CA, callers may show a certificate of the cluster (workers do, clients don't)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    if ca_pem is not None:
        context.load_verify_locations(cadata=ca_pem)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def peer_worker_id(ssl_object: Any) -> WorkerId | None:
    """The worker that verified itself on this connection; None if the caller showed no certificate.

    `ssl_object` is the transport's `ssl_object` extra.

    Raises:
        UnauthenticatedError: a certificate of the cluster that isn't a worker's.
    """
    certificate = ssl_object.getpeercert() if ssl_object is not None else None
    if not certificate:
        return None
    for kind, name in certificate.get("subjectAltName", ()):
        if kind == "DNS" and name.endswith(_WORKER_SUFFIX):
            worker_id = name.removesuffix(_WORKER_SUFFIX)
            if is_worker_id(worker_id):
                return WorkerId(worker_id)
    raise UnauthenticatedError("the certificate shown is not a worker's")
