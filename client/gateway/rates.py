"""What is left of a key's limits, as headers of the answer: programs pace themselves by it.

A generation tells it once it has a route; an answer that begins before says nothing of it. Ollama's API has no such
headers of its own: its answers have OpenAI's, which what stands in between (proxies, pools of keys) knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, Protocol, TypeAlias

from aiohttp import web

from protocol.key_limits import RateLeft

Counted: TypeAlias = Literal["requests", "tokens"]
RateHeaders: TypeAlias = Callable[[Mapping[Counted, RateLeft], datetime], Mapping[str, str]]
"""What is left of each kind, and the time now, as one API says it."""


class RatesSource(Protocol):
    """A generation that knows, sooner or later; or vectors, or a refusal, which know."""

    @property
    def rates(self) -> tuple[RateLeft, ...]:
        """What is left; nothing if that isn't known, or nothing is limited."""


RATES = web.RequestKey("rates", list[RatesSource])
EXPOSED = ", ".join(
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
)
"""OpenAI's, for pages in browsers."""
_noted: ContextVar[list[RatesSource] | None] = ContextVar("gateway_rates", default=None)


def follow_rates(request: web.Request) -> None:
    """Have what generations of this request are told noted with it."""
    request[RATES] = []
    _noted.set(request[RATES])


def note_rates(source: RatesSource) -> None:
    """A generation of this request begins, or something else of it says what is left."""
    if (noted := _noted.get()) is not None:
        noted.append(source)


def add_rate_headers(request: web.Request, response: web.StreamResponse, headers_of: RateHeaders) -> None:
    """What is known when the answer begins."""
    if left := tightest([rate for source in request.get(RATES, ()) for rate in source.rates]):
        response.headers.update(headers_of(left, datetime.now(UTC)))


def tightest(rates: Sequence[RateLeft]) -> dict[Counted, RateLeft]:
    """Of each kind the rate that has least left: of tokens there may be a minute's and a day's."""
    found: dict[Counted, RateLeft] = {}
    for rate in sorted(rates, key=lambda rate: rate.n_left):
        found.setdefault("requests" if rate.limit_name == "requests/min" else "tokens", rate)
    return found


def openai_rate_headers(left: Mapping[Counted, RateLeft], _now: datetime) -> dict[str, str]:
    """`x-ratelimit-*`: the reset is how long it takes until all is there again, as Go writes durations."""
    headers = {}
    for kind, rate in left.items():
        headers[f"x-ratelimit-limit-{kind}"] = str(rate.limit)
        headers[f"x-ratelimit-remaining-{kind}"] = str(rate.n_left)
        headers[f"x-ratelimit-reset-{kind}"] = duration(rate.full_in_s)
    return headers


def anthropic_rate_headers(left: Mapping[Counted, RateLeft], now: datetime) -> dict[str, str]:
    """`anthropic-ratelimit-*`: the reset is the time when all is there again, RFC 3339 in whole seconds."""
    headers = {}
    for kind, rate in left.items():
        full_at = datetime.fromtimestamp(math.ceil(now.timestamp() + rate.full_in_s), UTC)
        headers[f"anthropic-ratelimit-{kind}-limit"] = str(rate.limit)
        headers[f"anthropic-ratelimit-{kind}-remaining"] = str(rate.n_left)
        headers[f"anthropic-ratelimit-{kind}-reset"] = f"{full_at:%Y-%m-%dT%H:%M:%SZ}"
    return headers


def duration(seconds: float) -> str:
    """`12ms`, `1s`, `6m0s`, `1h2m3s`; rounded up."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1e3)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{f'{hours}h' if hours else ''}{f'{minutes}m' if hours or minutes else ''}{rest}s"
