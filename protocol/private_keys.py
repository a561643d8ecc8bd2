"""Private keys as the cluster uses them: ECDSA on P-256, as unencrypted PKCS#8 in files for their owner alone."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The private key as text; keep it in a 0600 file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def key_from_pem(pem: str | bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key; ValueError if it isn't one of ours."""
    try:
        key = load_pem_private_key(pem.encode() if isinstance(pem, str) else pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ValueError("it isn't an unencrypted private key in PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("it isn't an ECDSA key on P-256")  # noqa: TRY004 - the file is wrong, not a type
    return key


def public_key_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """The public half (SubjectPublicKeyInfo, DER), which a worker's id is the hash of."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
