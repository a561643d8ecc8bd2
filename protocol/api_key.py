"""API keys as people carry them: one string that names the key, proves it, and pins the cluster's CA.

`brigade-<kind>.<key id>.<secret>.<SHA-256 of the CA certificate, hex>`. With the fingerprint in the key, a client
needs no CA file: it takes the CA that the coordinator shows and refuses any other than the key's.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, replace

from protocol.errors import UnauthenticatedError
from protocol.ids import KeyId
from protocol.key_rest import KeyKind

_KEY = re.compile(r"brigade-(client|admin)\.([a-z0-9]{8})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A whole key, secret included: keep it out of logs (its repr leaves the secret out)."""

    kind: KeyKind
    key_id: KeyId
    secret: str
    ca_fingerprint: str
    """SHA-256 of the cluster CA's certificate (DER), hex."""

    def __repr__(self) -> str:
        return f"ApiKey({self.kind}, {self.key_id})"

    def of_id(self, key_id: KeyId) -> ApiKey:
        """The same secret for a key that has an id already."""
        return replace(self, key_id=key_id)

    def text(self) -> str:
        """The key as it is handed out."""
        return f"brigade-{self.kind}.{self.key_id}.{self.secret}.{self.ca_fingerprint}"


def new_api_key(kind: KeyKind, ca_fingerprint: str) -> ApiKey:
    """A fresh random key (256 bits)."""
    return ApiKey(
        kind=kind,
        key_id=KeyId(secrets.token_hex(4)),
        secret=secrets.token_urlsafe(32),
        ca_fingerprint=ca_fingerprint,
    )


def api_key_from_text(text: str) -> ApiKey:
    """Read a key.

    Raises:
        UnauthenticatedError: not the form of a key; the message never repeats the text.
    """
    match = _KEY.fullmatch(text.strip())
    if match is None:
        raise UnauthenticatedError(
            f"that is no Brigade API key ({len(text.strip())} characters): a key begins with 'brigade-client.' or "
            "'brigade-admin.' and is shown once by `coord key create`"
        )
    kind: KeyKind = "admin" if match[1] == "admin" else "client"
    return ApiKey(kind=kind, key_id=KeyId(match[2]), secret=match[3], ca_fingerprint=match[4])


def secret_hash(secret: str) -> str:
    """What the coordinator keeps of a key's secret. The secret is random and long, so one SHA-256 is enough."""
    return hashlib.sha256(secret.encode()).hexdigest()
