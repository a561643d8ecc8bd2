"""What is left, as the APIs write it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from client.gateway.rates import anthropic_rate_headers, duration, openai_rate_headers, tightest
from protocol.key_limits import RateLeft

REQUESTS = RateLeft(limit_name="requests/min", limit=60, n_left=59, full_in_s=1.0)
MINUTE = RateLeft(limit_name="tokens/min", limit=150_000, n_left=149_984, full_in_s=0.0064)
DAY = RateLeft(limit_name="tokens/day", limit=200_000, n_left=150_000, full_in_s=21_600.0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.0064, "7ms"),
        (0.9999, "1000ms"),
        (1.0, "1s"),
        (59.2, "1m0s"),
        (360, "6m0s"),
        (3723, "1h2m3s"),
    ],
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_of_several_rates_of_tokens_and_of_several_answers_it_is_the_tightest() -> None:
    later = RateLeft(limit_name="requests/min", limit=60, n_left=58, full_in_s=2.0)
    assert tightest([REQUESTS, DAY, MINUTE, later]) == {"requests": later, "tokens": MINUTE}
    assert tightest([DAY]) == {"tokens": DAY}
    assert tightest([]) == {}


def test_openai_gets_how_long_and_anthropic_until_when() -> None:
    left, now = tightest([REQUESTS, DAY]), datetime(2026, 11, 22, 23, 59, 59, 500_000, tzinfo=UTC)
    assert openai_rate_headers(left, now) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "150000",
        "x-ratelimit-reset-tokens": "6h0m0s",
    }
    assert anthropic_rate_headers(left, now) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "2026-11-23T00:00:01Z",
        "anthropic-ratelimit-tokens-limit": "200000",
        "anthropic-ratelimit-tokens-remaining": "150000",
        "anthropic-ratelimit-tokens-reset": "2026-11-23T06:00:00Z",
    }
