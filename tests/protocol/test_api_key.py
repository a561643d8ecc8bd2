"""API keys: one string, read back exactly, never shown by accident."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.api_key import api_key_from_text, new_api_key, secret_hash
from protocol.errors import UnauthenticatedError


@pytest.mark.parametrize("kind", ["client", "admin"])
def test_a_key_is_read_back_as_it_was_made(kind: str) -> None:
    for _ in range(100):
        key = new_api_key(kind, "ab" * 32)  # type: ignore[arg-type]
        assert api_key_from_text(f" {key.text()}\n") == key


def test_a_key_s_repr_and_hash_hold_no_secret() -> None:
    key = new_api_key("client", "ab" * 32)
    assert key.secret not in repr(key)
    assert key.secret not in secret_hash(key.secret)
    assert secret_hash(key.secret) != secret_hash(key.secret + "x")


@given(text=st.text(max_size=300))
def test_what_is_no_key_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(UnauthenticatedError, match="no Brigade API key") as caught:
        api_key_from_text(text)
    assert len(text.strip()) < 12 or text.strip() not in str(caught.value)
