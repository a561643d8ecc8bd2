from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.coordinator_urls import checked_coordinator_url, checked_coordinator_urls
from protocol.errors import (
    ConfigError,
)


def test_lists_of_addresses() -> None:
    assert checked_coordinator_urls(" a:1,,https://b/ , a:1") == ("https://a:1", "https://b")
    for text in ("", ",", "a:1,http://b"):
        with pytest.raises(ConfigError):
            checked_coordinator_urls(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://a:7400", "https://a:7400"),
        ("https://a:7400/", "https://a:7400"),
        (" a.example:1 ", "https://a.example:1"),
        ("https://[::1]:7400", "https://[::1]:7400"),
        ("https://a", "https://a"),
        ("https://a:443", "https://a"),
    ],
)
def test_addresses(text: str, expected: str) -> None:
    assert checked_coordinator_url(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "http://a:1", "https://u:p@a:1", "https://a:1/x", "https://a:1?x=1", "https://a:x", "ws://a", "https://"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError):
        checked_coordinator_url(text)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_an_error(text: str) -> None:
    try:
        url = checked_coordinator_url(text)
    except ConfigError:
        return
    assert url.startswith("https://")
    assert checked_coordinator_url(url) == url
