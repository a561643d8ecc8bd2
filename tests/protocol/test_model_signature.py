from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from protocol.author_keys import author_key_of
from protocol.errors import UntrustedFileError
from protocol.ids import Revision
from protocol.model_signature import PAYLOAD_TYPE, check_author, sign, verified_signature

ADA = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
MALLORY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
REVISION = Revision("ab" * 32)
AT = datetime(2026, 11, 22, tzinfo=UTC)


def signature(key: Ed25519PrivateKey = ADA, revision: Revision = REVISION, signer: str = "Ada") -> bytes:
    return sign(revision, key, model="tiny", version="1.0", signer=signer, at=AT)


def test_what_was_signed_comes_back() -> None:
    found = verified_signature(signature(), REVISION)
    said = found.statement
    assert (said.revision, said.model, said.version, said.signer) == (REVISION, "tiny", "1.0", "Ada")
    assert said.signed_at == "2026-11-22T00:00:00+00:00"
    check_author(found, {said.key})
    with pytest.raises(UntrustedFileError, match="none of the 1 trusted here"):
        check_author(found, {author_key_of(MALLORY)})


@given(at=st.integers(0, len(signature()) - 1), flip=st.integers(1, 255))
def test_no_changed_byte_changes_what_it_says(at: int, flip: int) -> None:
    """Most changes are refused; those of blanks between words change nothing."""
    good = signature()
    altered = good[:at] + bytes([good[at] ^ flip]) + good[at + 1 :]
    try:
        found = verified_signature(altered, REVISION)
    except UntrustedFileError:
        return
    assert found.statement == verified_signature(good, REVISION).statement


@given(end=st.integers(0, len(signature()) - 2))
def test_no_part_of_one_is_one(end: int) -> None:
    part = signature()[:end]
    with pytest.raises(UntrustedFileError):
        verified_signature(part, REVISION)


def resigned(payload: dict[str, Any], key: Ed25519PrivateKey, payload_type: str = PAYLOAD_TYPE) -> bytes:
    """An envelope as DSSE has it, written without our code."""
    raw = json.dumps(payload).encode()
    to_sign = f"DSSEv1 {len(payload_type)} {payload_type} {len(raw)} ".encode() + raw
    sig = base64.b64encode(key.sign(to_sign)).decode()
    signatures = [{"keyid": payload.get("key", ""), "sig": sig}]
    envelope = {
        "payloadType": payload_type,
        "payload": base64.b64encode(raw).decode(),
        "signatures": signatures,
    }
    return json.dumps(envelope).encode()


def test_it_is_a_dsse_envelope() -> None:
    payload = json.loads(base64.b64decode(json.loads(signature())["payload"]))
    assert verified_signature(resigned(payload, ADA), REVISION).statement.signer == "Ada"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"revision": "cd" * 32}, "get the signature that goes with it"),
        ({"revision": "AB" * 32}, "revision"),
        ({"signer": "Ada\x1b[2J"}, "printable"),
        ({"signer": "Ada \u202e"}, "printable"),
        ({"signer": " Ada"}, "printable"),
        ({"model": "x" * 101}, "1 to 100"),
        ({"version": ""}, "1 to 100"),
        ({"signed_at": "2026-11-22"}, "zone"),
        ({"signed_at": "yesterday"}, "isoformat"),
        ({"signed_at": "2026-11-22\x1b10:00:00+00:00"}, "printable"),
        ({"key": "ed25519:AAAA"}, "no author's key"),
        ({"more": 1}, "more"),
    ],
)
def test_even_a_good_signature_must_say_what_can_be_compared_and_shown(changes: dict[str, Any], words: str) -> None:
    payload = json.loads(base64.b64decode(json.loads(signature())["payload"])) | changes
    with pytest.raises(UntrustedFileError, match=words):
        verified_signature(resigned(payload, ADA), REVISION)


def test_names_are_checked_before_anything_is_signed() -> None:
    with pytest.raises(ValueError, match="printable"):
        signature(signer="Ada\n")
