from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from protocol.private_keys import key_from_pem, key_to_pem, new_key, public_key_der


def test_a_key_comes_back_as_it_was() -> None:
    key = new_key()
    again = key_from_pem(key_to_pem(key))
    assert public_key_der(again.public_key()) == public_key_der(key.public_key())
    assert public_key_der(new_key().public_key()) != public_key_der(key.public_key())


def test_other_texts_and_other_keys_are_refused() -> None:
    pem = (Encoding.PEM, PrivateFormat.PKCS8)
    locked = new_key().private_bytes(*pem, BestAvailableEncryption(b"password"))
    other_kind = ed25519.Ed25519PrivateKey.generate().private_bytes(*pem, NoEncryption())
    other_curve = ec.generate_private_key(ec.SECP384R1()).private_bytes(*pem, NoEncryption())
    for data, says in ((b"", "PEM"), (locked, "unencrypted"), (other_kind, "P-256"), (other_curve, "P-256")):
        with pytest.raises(ValueError, match=says):
            key_from_pem(data)
