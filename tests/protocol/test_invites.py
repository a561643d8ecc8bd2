from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError
from protocol.ids import InviteId
from protocol.invites import Invite, invite_from_text

URLS = ("https://192.168.1.10:7400", "https://[fd00::1]:7400", "https://brigade.example.org")
_HEX = "0123456789abcdef"


def invite(key: bytes = bytes(range(32))) -> Invite:
    return Invite(invite_id=InviteId("0123abcd"), ca_fingerprint="ab" * 32, urls=URLS, key=key)


@given(
    st.builds(
        Invite,
        invite_id=st.text(_HEX, min_size=8, max_size=8).map(InviteId),
        ca_fingerprint=st.text(_HEX, min_size=64, max_size=64),
        urls=st.lists(st.sampled_from(URLS), min_size=1, unique=True).map(tuple),
        key=st.binary(min_size=32, max_size=32),
    )
)
def test_an_invite_is_read_as_it_was_written(made: Invite) -> None:
    assert invite_from_text(f" {made.text()}\n") == made
    assert base64.urlsafe_b64encode(made.key).decode()[:43] not in repr(made)


@given(st.integers(0, len(invite().text()) - 1))
def test_a_part_of_one_is_found_out_and_not_repeated(n_chars: int) -> None:
    part = invite().text()[:n_chars]
    with pytest.raises(ConfigError, match="copy it whole") as caught:
        invite_from_text(part)
    assert len(part) < 20 or part not in caught.value.message


@pytest.mark.parametrize("urls", ["http://10.0.0.1:7400", "", "https://u:p@host", "\xff"])
def test_an_invite_to_nowhere_is_none(urls: str) -> None:
    encoded = base64.urlsafe_b64encode(urls.encode("latin-1")).decode().rstrip("=")
    parts = invite().text().split(".")
    with pytest.raises(ConfigError, match="no invite"):
        invite_from_text(".".join([*parts[:3], encoded, parts[4]]))


@given(st.text(max_size=300))
def test_any_text_is_an_invite_or_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError):
        invite_from_text(text)
