"""Tokens: kinds never pass for one another, old keys verify until retired, nothing outlives its expiry."""

from __future__ import annotations

import base64
import hashlib
import secrets
from itertools import permutations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from itsdangerous import Signer

from protocol.errors import UnauthenticatedError
from protocol.ids import BlockRange
from protocol.tickets import AttachTicket, Claims, SessionToken, Ticket, sign_claims, ticket_key, verified_claims

OLD, NEW = b"o" * 32, b"n" * 32
TOKEN = SessionToken(expires_at_s=100.0, worker_id="w")
TICKET = Ticket(
    expires_at_s=100.0,
    worker_id="w",
    session_id="s",
    model="m",
    revision="0" * 64,
    blocks=BlockRange(0, 3),
    epoch=1,
    previous=None,
    next="v",
    next_url="https://v:1",
    head="w",
    head_url="https://w:1",
    tail="v",
    max_positions=10,
)
ATTACH_TICKET = AttachTicket(expires_at_s=100.0, worker_id="v", session_id="s", max_positions=10)
EVERY_KIND: tuple[Claims, ...] = (TOKEN, TICKET, ATTACH_TICKET)


@pytest.mark.parametrize("claims", EVERY_KIND)
def test_claims_come_back_as_they_were(claims: Claims) -> None:
    assert verified_claims(sign_claims(claims, [NEW]), type(claims), [NEW], 99.9) == claims


@pytest.mark.parametrize(("shown", "wanted"), list(permutations(EVERY_KIND, 2)))
def test_kinds_never_pass_for_one_another(shown: Claims, wanted: Claims) -> None:
    with pytest.raises(UnauthenticatedError):
        verified_claims(sign_claims(shown, [NEW]), type(wanted), [NEW], 0)


def test_an_old_key_verifies_until_it_is_retired_and_the_newest_signs() -> None:
    token = sign_claims(TOKEN, [OLD])
    assert verified_claims(token, SessionToken, [OLD, NEW], 0) == TOKEN
    with pytest.raises(UnauthenticatedError):
        verified_claims(token, SessionToken, [NEW], 0)
    with pytest.raises(UnauthenticatedError):
        verified_claims(sign_claims(TOKEN, [OLD, NEW]), SessionToken, [OLD], 0)


@given(keys=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=3, unique=True))
def test_a_key_that_was_derived_once_signs_as_itsdangerous_itself(keys: list[bytes]) -> None:
    for claims in EVERY_KIND:
        salt = f"brigade.{claims.__struct_config__.tag}.v1".encode()
        plain = Signer(keys, salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
        for _ in range(2):
            assert plain.unsign(sign_claims(claims, keys))
            older = Signer(keys[:1], salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
            token = older.sign(base64.urlsafe_b64encode(msgspec.msgpack.encode(claims))).decode()
            assert verified_claims(token, type(claims), keys, 0) == claims


def test_nothing_outlives_its_expiry() -> None:
    token = sign_claims(TOKEN, [NEW])
    verified_claims(token, SessionToken, [NEW], 99.99)
    with pytest.raises(UnauthenticatedError, match="expired"):
        verified_claims(token, SessionToken, [NEW], 100.0)


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_an_altered_token_is_refused(at: int, flip: int) -> None:
    token = bytearray(sign_claims(TICKET, [NEW]).encode())
    token[at % len(token)] ^= flip
    try:
        claims = verified_claims(bytes(token).decode("latin-1"), Ticket, [NEW], 0)
    except UnauthenticatedError:
        return
    # base64's last letter has bits that mean nothing: the one alteration that may pass must change nothing
    assert claims == TICKET


@given(text=st.text(max_size=200))
def test_any_text_is_refused_with_one_error(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        verified_claims(text, Ticket, [NEW], 0)


def test_a_huge_token_is_not_read() -> None:
    with pytest.raises(UnauthenticatedError):
        verified_claims("x" * 100_000, Ticket, [NEW], 0)


def test_unknown_claims_are_refused_though_signed() -> None:
    forged = msgspec.to_builtins(TOKEN) | {"is_admin": True}
    payload = base64.urlsafe_b64encode(msgspec.msgpack.encode(forged))
    from itsdangerous import Signer  # noqa: PLC0415 - only this test signs by hand

    signer = Signer(
        [NEW], salt="brigade.worker-session.v1", key_derivation="hmac", digest_method=__import__("hashlib").sha256
    )
    with pytest.raises(UnauthenticatedError):
        verified_claims(signer.sign(payload).decode(), SessionToken, [NEW], 0)


def test_a_worker_s_ticket_key_tells_nothing_of_another_s() -> None:
    key = secrets.token_bytes(32)
    one, other = ticket_key(key, "w-1"), ticket_key(key, "w-2")
    assert one != other
    assert ticket_key(key, "w-1") == one
    with pytest.raises(UnauthenticatedError):
        verified_claims(sign_claims(TICKET, [one]), Ticket, [other], 0)


def test_no_keys_is_a_defect_not_an_open_door() -> None:
    with pytest.raises(ValueError, match="no signing keys"):
        verified_claims(sign_claims(TOKEN, [NEW]), SessionToken, [], 0)
