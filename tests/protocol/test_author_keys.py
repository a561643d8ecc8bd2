from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.author_keys import (
    author_key_argument,
    author_key_from_text,
    author_key_of,
    author_key_of_bytes,
    private_key_from_pem,
    private_key_pem,
    public_key,
)
from protocol.errors import ConfigError


@given(raw=st.binary(min_size=32, max_size=32).filter(lambda raw: any(raw[1:31])))
def test_a_key_has_one_spelling(raw: bytes) -> None:
    text = author_key_of_bytes(raw)
    assert author_key_from_text(text) == text
    assert public_key(text).public_bytes_raw() == raw
    # 32 bytes fill 42 characters and 4 bits: of the last one only every fourth means a key
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(text[-1])
    assert last % 4 == 0
    for other in (text + "=", text[:-1], text + "A", text.upper(), " " + text, text[:-1] + "B"):
        with pytest.raises(ValueError, match="no author's key"):
            author_key_from_text(other)


def test_a_key_is_given_as_it_is_or_as_a_file(tmp_path: Path) -> None:
    key = author_key_of(Ed25519PrivateKey.generate())
    file = tmp_path / "ada.pub"
    file.write_text(f"{key} Ada's, of 2026\n")
    assert author_key_argument(key, "--author") == author_key_argument(str(file), "--author") == key
    for wrong in (str(tmp_path / "none"), str(tmp_path), "ed25519:abc"):
        with pytest.raises(ConfigError, match="--author"):
            author_key_argument(wrong, "--author")


def test_a_private_key_is_read_with_its_passphrase_alone(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    locked = private_key_pem(key, "correct horse")
    assert private_key_from_pem(locked, "correct horse", tmp_path).private_bytes_raw() == key.private_bytes_raw()
    for passphrase in (None, "battery"):
        with pytest.raises(ConfigError, match="passphrase"):
            private_key_from_pem(locked, passphrase, tmp_path)
    assert private_key_from_pem(private_key_pem(key, None), None, tmp_path).private_bytes_raw() == (
        key.private_bytes_raw()
    )


@pytest.mark.parametrize(
    "y",
    [
        "00" * 32,
        "01" + 31 * "00",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        *(f"{last}{30 * 'ff'}7f" for last in ("ec", "ed", "ee")),
    ],
)
def test_a_key_with_which_anybodys_signature_verifies_is_refused(y: str) -> None:
    raw = bytes.fromhex(y)
    for signed in (raw, raw[:31] + bytes([raw[31] | 0x80])):
        with pytest.raises(ValueError, match="by anybody"):
            author_key_from_text(author_key_of_bytes(signed))
