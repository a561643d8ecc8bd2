"""Keys of authors who sign models: the public half as people write it, the private half as a file of its own.

The public half is one word, `ed25519:` and 43 characters of base64url, on the command line or in a file.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from pathlib import Path
from typing import NewType

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.disk import storage_error
from protocol.errors import ConfigError

AuthorKey = NewType("AuthorKey", str)
"""The public half of an author's key, in words: `ed25519:...`."""

_PREFIX = "ed25519:"
_KEY_BYTES = 32
_FIELD = 2**255 - 19
_ORDER_8 = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
_EVERYBODYS = frozenset({0, 1, _FIELD - 1, _FIELD, _FIELD + 1, _ORDER_8, _FIELD - _ORDER_8})
"""Points of small order, by their y (RFC 8032): nobody's keys, since anybody makes what verifies with them."""
_MAX_FILE_BYTES = 64 * 2**10


def author_key_from_text(text: str) -> AuthorKey:
    """Read a public key. ValueError if it isn't one; each key has one spelling only."""
    encoded = text.removeprefix(_PREFIX)
    try:
        raw = base64.b64decode(encoded + "=", altchars=b"-_", validate=True) if text.startswith(_PREFIX) else b""
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _KEY_BYTES or author_key_of_bytes(raw) != text:
        raise ValueError(f"{text[:80]!r} is no author's key, which is {_PREFIX} and 43 letters, digits, - and _")
    if int.from_bytes(raw, "little") % 2**255 in _EVERYBODYS:
        raise ValueError(f"{text!r} is no author's key: signatures that verify with it can be made by anybody")
    return AuthorKey(text)


def author_key_of_bytes(raw: bytes) -> AuthorKey:
    """The spelling of a public key."""
    return AuthorKey(_PREFIX + base64.urlsafe_b64encode(raw).decode().rstrip("="))


def author_key_of(private_key: Ed25519PrivateKey) -> AuthorKey:
    """The public half of a private key."""
    return author_key_of_bytes(private_key.public_key().public_bytes_raw())


def public_key(key: AuthorKey) -> Ed25519PublicKey:
    """The key to verify with."""
    return Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key.removeprefix(_PREFIX) + "="))


def author_key_argument(text: str, option: str) -> AuthorKey:
    """A public key as an operator gives it: the key itself, or a file that begins with it.

    Raises:
        ConfigError: neither; the message names `option`.
    """
    given = text.strip()
    if not given.startswith(_PREFIX):
        words = _read(Path(given).expanduser(), option).decode("utf-8", errors="replace").split()
        given = words[0] if words else ""
    try:
        return author_key_from_text(given)
    except ValueError as exc:
        raise ConfigError(f"{option}: {exc}; give it, or the .pub file that `coord model keygen` wrote") from exc


def private_key_pem(key: Ed25519PrivateKey, passphrase: str | None) -> bytes:
    """The private key as text, encrypted if there is a passphrase; keep it in a 0600 file."""
    encryption = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.encode())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def is_encrypted(pem: bytes) -> bool:
    """Whether a passphrase is needed to read the private key."""
    return b"BEGIN ENCRYPTED PRIVATE KEY" in pem


def read_private_key_file(path: Path) -> bytes:
    """The bytes of a private key file, as far as one can be long.

    Raises:
        ConfigError: it can't be read.
    """
    return _read(path, "--key")


def private_key_from_pem(pem: bytes, passphrase: str | None, path: Path) -> Ed25519PrivateKey:
    """Read a private key; `path` is for the message.

    Raises:
        ConfigError: it isn't one, or the passphrase is wrong or missing.
    """
    if is_encrypted(pem) and passphrase is None:
        raise ConfigError(f"the key {path} is encrypted: its passphrase is needed (--passphrase-file)")
    try:
        key = load_pem_private_key(pem, passphrase.encode() if passphrase and is_encrypted(pem) else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        why = "or the passphrase is wrong" if is_encrypted(pem) else "in PEM"
        raise ConfigError(
            f"{path} holds no private key {why}; `coord model keygen FILE` makes one: give that file as --key"
        ) from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{path} holds a key of another kind: models are signed with Ed25519 keys")
    return key


def readers_beside_owner(path: Path) -> str:
    """Who else may read a private key file, in words with what to do; empty if nobody."""
    is_said_otherwise = os.name == "nt"  # permissions, on Windows
    mode = stat.S_IMODE(path.stat().st_mode)
    if is_said_otherwise or not mode & 0o077:
        return ""
    return f"others on this machine can read the private key {path} (mode {mode:o}): chmod 600 {path}"


def _read(path: Path, option: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as exc:
        instead = "give another file"
        raise ConfigError(f"{option}: {storage_error(path, exc, instead=instead).message}") from exc
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"{option}: {path} has over {_MAX_FILE_BYTES} bytes, so it is no key")
    return data
