"""Who vouches for a model: an author's signature over its revision, the hash that names every file by hash.

The form is DSSE's envelope (the one that Sigstore and in-toto sign in) around a statement of ours, so what is
signed says what it is for. A signature proves who holds a key; whose key that is, operators say. Bytes in, values
out.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from protocol.author_keys import AuthorKey, author_key_from_text, author_key_of, public_key
from protocol.errors import UntrustedFileError
from protocol.ids import Revision

PAYLOAD_TYPE = "application/vnd.brigade.model-signature.v1+json"
"""Signed too: a signature that the same key made for something else never counts as one of a model."""
MAX_SIGNATURE_BYTES = 16 * 2**10
MAX_NAME_CHARS = 100

_REVISION = re.compile(r"[0-9a-f]{64}")


class Statement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is signed. Names are the author's own words: they identify nobody, the key does."""

    revision: Revision
    """SHA-256 of the manifest."""
    model: str
    """What the author calls the model."""
    version: str
    signer: str
    """What the author calls himself."""
    signed_at: str
    """The author's clock, ISO 8601."""
    key: AuthorKey
    """Whose signature it is; said inside, so that nobody passes another's off as his."""

    def __post_init__(self) -> None:
        """Refuse what can't be shown or compared. ValueError: msgspec reports it as invalid."""
        if _REVISION.fullmatch(self.revision) is None:
            raise ValueError("the revision is not 64 lower-case hex digits")
        for what in ("model", "version", "signer", "signed_at"):
            check_label(getattr(self, what), what)
        if datetime.fromisoformat(self.signed_at).tzinfo is None:
            raise ValueError("signed_at isn't a time with its zone")
        author_key_from_text(self.key)


class ModelSignature(msgspec.Struct, frozen=True, kw_only=True):
    """A signature that was verified: what it says, and the envelope's bytes to hand on."""

    statement: Statement
    envelope: bytes


class SignedBy(msgspec.Struct, frozen=True, kw_only=True):
    """Who vouches for a model. `signer`, `model`, `version` and `signed_at` are the signer's words. Since 1.2."""

    key: AuthorKey
    signer: str
    model: str
    version: str
    signed_at: str
    author: str | None = None
    """What the operator who trusts this key calls its holder; None: nobody here trusts it."""


class _SignatureOfOne(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    keyid: str
    sig: bytes


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="camel"):
    payload_type: str
    payload: bytes
    signatures: tuple[_SignatureOfOne, ...]


def check_label(text: str, what: str) -> None:
    """ValueError unless it is 1 to 100 characters that a terminal shows as they are, with no blanks at its ends."""
    if not 1 <= len(text) <= MAX_NAME_CHARS or not text.isprintable() or text != text.strip():
        raise ValueError(
            f"{what} is {text[:MAX_NAME_CHARS]!r}; it must be 1 to {MAX_NAME_CHARS} printable characters"
        )


def sign(
    revision: Revision, key: Ed25519PrivateKey, *, model: str, version: str, signer: str, at: datetime
) -> bytes:
    """The signature of a model of this revision, as a file.

    Raises:
        ValueError: one of the names can't be one.
    """
    statement = Statement(
        revision=revision,
        model=model,
        version=version,
        signer=signer,
        signed_at=at.isoformat(timespec="seconds"),
        key=author_key_of(key),
    )
    payload = msgspec.json.encode(statement, order="sorted")
    signature = _SignatureOfOne(keyid=statement.key, sig=key.sign(_to_sign(PAYLOAD_TYPE, payload)))
    envelope = _Envelope(payload_type=PAYLOAD_TYPE, payload=payload, signatures=(signature,))
    return msgspec.json.format(msgspec.json.encode(envelope)) + b"\n"


def verified_signature(envelope: bytes, revision: Revision) -> ModelSignature:
    """Read a signature, and see that the key it names made it, for the model of this revision.

    Whether that key is anybody's who is trusted is for the caller to say.

    Raises:
        UntrustedFileError: it is none, damaged, or another model's.
    """
    if len(envelope) > MAX_SIGNATURE_BYTES:
        raise UntrustedFileError(f"a signature of {len(envelope)} bytes is over {MAX_SIGNATURE_BYTES}")
    try:
        read = msgspec.json.decode(envelope, type=_Envelope)
        if read.payload_type != PAYLOAD_TYPE or len(read.signatures) != 1:
            raise UntrustedFileError(
                f"a signature of {read.payload_type[:100]!r} with {len(read.signatures)} signers isn't a model's: "
                f"that is {PAYLOAD_TYPE!r}, with 1"
            )
        statement = msgspec.json.decode(read.payload, type=Statement)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"not a model's signature, or a damaged one: {exc}") from exc
    (signature,) = read.signatures
    try:
        public_key(statement.key).verify(signature.sig, _to_sign(PAYLOAD_TYPE, read.payload))
    except InvalidSignature as exc:
        raise UntrustedFileError(
            f"the signature doesn't verify with the key that it names, {statement.key}: it was altered or cut"
        ) from exc
    if statement.revision != revision:
        raise UntrustedFileError(
            f"the signature is of revision {statement.revision[:12]} ({statement.model} {statement.version}), and "
            f"the model here is revision {revision[:12]}: get the signature that goes with it"
        )
    return ModelSignature(statement=statement, envelope=envelope)


def check_author(signature: ModelSignature, trusted: Collection[AuthorKey]) -> None:
    """See that one of the trusted authors made the signature.

    Raises:
        UntrustedFileError: somebody else did.
    """
    statement = signature.statement
    if statement.key not in trusted:
        raise UntrustedFileError(
            f"the model is signed with the key {statement.key} (by {statement.signer!r}, as it says), and that is "
            f"none of the {len(trusted)} trusted here"
        )


def _to_sign(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %b %d %b" % (len(payload_type), payload_type.encode(), len(payload), payload)
