"""Invites as people carry them: one string that says where to join, proves that one may, and pins the cluster's CA.

`brigade-invite.<invite id>.<SHA-256 of the CA certificate, hex>.<addresses, base64>.<key>`. The key proves a join
as the join secret's would (`protocol.handshake`), and is this invite's alone. It stands last and has one length, so
that an invite of which the end is missing is found out. Who else holds the invite can't pose as the coordinator by
it: a worker takes certificates of no other CA than the one that is pinned.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509

from protocol.coordinator_urls import checked_coordinator_urls
from protocol.errors import ConfigError, WrongSecretError
from protocol.ids import InviteId
from protocol.tls import COORDINATOR_NAME, fingerprint

INVITE_KEY_BYTES = 32
MAX_INVITE_URLS = 8
_ID = re.compile(r"[0-9a-f]{8}")
_INVITE = re.compile(
    r"brigade-invite\.(?P<id>[0-9a-f]{8})\.(?P<ca>[0-9a-f]{64})\.(?P<urls>[\w-]{1,4096})\.(?P<key>[\w-]{43})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invite:
    """A whole invite, key included: keep it out of logs (its repr leaves the key out)."""

    invite_id: InviteId
    ca_fingerprint: str
    """SHA-256 of the cluster CA's certificate (DER), hex."""
    urls: tuple[str, ...]
    """Addresses of the coordinator, to be tried in order."""
    key: bytes = field(repr=False)
    """The MAC key of the join proof."""

    def text(self) -> str:
        """The invite as it is handed out."""
        return ".".join(
            (
                "brigade-invite",
                self.invite_id,
                self.ca_fingerprint,
                _encoded(_joined(self.urls)),
                _encoded(self.key),
            )
        )


def is_invite_id(text: str) -> bool:
    """Whether `text` has the form of an invite's id."""
    return _ID.fullmatch(text) is not None


def invite_from_text(text: str) -> Invite:
    """Read an invite.

    Raises:
        ConfigError: not the form of one, or not whole; the message never repeats the text.
    """
    text = text.strip()
    match = _INVITE.fullmatch(text)
    wrong = ConfigError(
        f"that is no invite, or not all of one ({len(text)} characters): it is one line that begins with "
        "'brigade-invite.', as `coord invite` prints it; copy it whole"
    )
    if match is None:
        raise wrong
    try:
        urls = checked_coordinator_urls(_decoded(match["urls"]).decode())
        key = _decoded(match["key"])
    except (binascii.Error, UnicodeDecodeError, ConfigError) as exc:
        raise wrong from exc
    return Invite(invite_id=InviteId(match["id"]), ca_fingerprint=match["ca"], urls=urls, key=key)


def check_pinned(invite: Invite, ca_pem: str, certificate: bytes, url: str) -> None:
    """Others may hold the same invite: who answers is whom it is from only if its cluster's CA says so.

    `ca_pem` is the CA that whoever answers at `url` names. It is no secret, so that it is named says little: it
    must have issued the coordinator's `certificate` (DER) that was shown there.

    Raises:
        WrongSecretError: another CA, or one that has not certified this coordinator.
    """
    blame = "somebody who holds the invite too may be in between; nothing was accepted from it"
    if not hmac.compare_digest(_fingerprint(ca_pem), invite.ca_fingerprint):
        raise WrongSecretError(
            f"{url} answers for another cluster than the one that the invite {invite.invite_id} is from: {blame}"
        )
    if not _is_coordinators(certificate, ca_pem):
        raise WrongSecretError(f"{url} isn't the coordinator that the invite {invite.invite_id} is from: {blame}")


def _fingerprint(ca_pem: str) -> str:
    try:
        return fingerprint(ssl.PEM_cert_to_DER_cert(ca_pem)).hex()
    except ValueError:
        return ""


def _is_coordinators(certificate: bytes, ca_pem: str) -> bool:
    try:
        shown = x509.load_der_x509_certificate(certificate)
        shown.verify_directly_issued_by(x509.load_pem_x509_certificate(ca_pem.encode()))
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - cryptography's errors share no base: parsing, signatures, missing extensions
        return False
    return COORDINATOR_NAME in names.get_values_for_type(x509.DNSName)


def _joined(urls: Sequence[str]) -> bytes:
    return ",".join(urls).encode()


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
