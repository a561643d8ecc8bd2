"""The join proof: every field counts, roles differ, weak secrets stop the program."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.handshake import Transcript, checked_secret, is_proof_valid, join_key, join_proof

KEY = join_key("a secret")
TRANSCRIPT = Transcript(
    version="1.0",
    purpose="POST /v1/join",
    coordinator_id="c",
    worker_id="w",
    client_nonce="n1",
    server_nonce="n2",
    tls_fingerprint=b"f",
    body=b"{}",
)
TEXT_FIELDS = ("version", "purpose", "coordinator_id", "worker_id", "client_nonce", "server_nonce")


def test_a_proof_is_good_for_its_own_transcript_and_role_only() -> None:
    proof = join_proof(KEY, TRANSCRIPT, "worker")
    assert is_proof_valid(KEY, TRANSCRIPT, "worker", proof)
    assert not is_proof_valid(KEY, TRANSCRIPT, "coordinator", proof)
    assert not is_proof_valid(join_key("another"), TRANSCRIPT, "worker", proof)
    assert not is_proof_valid(KEY, TRANSCRIPT, "worker", "")
    assert not is_proof_valid(KEY, TRANSCRIPT, "worker", "é" * 64)


@pytest.mark.parametrize("field", [*TEXT_FIELDS, "tls_fingerprint", "body"])
def test_every_field_is_under_the_mac(field: str) -> None:
    proof = join_proof(KEY, TRANSCRIPT, "worker")
    value = getattr(TRANSCRIPT, field)
    changed = replace(TRANSCRIPT, **{field: value + (b"x" if isinstance(value, bytes) else "x")})
    assert not is_proof_valid(KEY, changed, "worker", proof)


@given(values=st.lists(st.text(max_size=8), min_size=6, max_size=6), shift=st.integers(1, 4))
def test_moving_letters_from_one_field_to_the_next_changes_the_proof(values: list[str], shift: int) -> None:
    one = replace(TRANSCRIPT, **dict(zip(TEXT_FIELDS, values, strict=True)))
    moved = list(values)
    moved[1] = values[0][-shift:] + values[1]
    moved[0] = values[0][:-shift]
    other = replace(TRANSCRIPT, **dict(zip(TEXT_FIELDS, moved, strict=True)))
    assert (moved == values) == (join_proof(KEY, one, "worker") == join_proof(KEY, other, "worker"))


@pytest.mark.parametrize("make", [secrets.token_urlsafe, secrets.token_hex])
def test_a_random_secret_of_32_bytes_is_always_taken(make: object) -> None:
    for _ in range(500):
        secret = make(32)  # type: ignore[operator]
        assert checked_secret(f" {secret}\n") == secret


@pytest.mark.parametrize(
    "secret",
    [
        "",
        " \n",
        "changeme",
        "password" * 16,
        "a" * 64,
        "0123456789" * 7,
        "letmein-letmein-letmein-letmein-letmein-letmein",
    ],
)
def test_an_empty_default_or_repetitive_secret_is_refused_without_being_told(secret: str) -> None:
    with pytest.raises(ConfigError, match="256 are needed") as caught:
        checked_secret(secret)
    assert not secret.strip() or secret not in str(caught.value)


def test_a_random_secret_of_24_bytes_is_too_short() -> None:
    with pytest.raises(ConfigError, match="192 bits"):
        checked_secret(secrets.token_urlsafe(24))
