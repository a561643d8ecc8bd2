"""Addresses of coordinators as people write them, checked: a key must never travel unencrypted."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from yarl import URL

from protocol.errors import BrigadeError, ConfigError, UnreachableError

T = TypeVar("T")


def checked_coordinator_url(text: str) -> str:
    """The coordinator's address as `https://host:port`, without a trailing slash.

    Raises:
        ConfigError: not such an address, or plain HTTP (a key must never travel unencrypted).
    """
    text = text.strip()
    try:
        url = URL(text if "://" in text else f"https://{text}")
        host, port = url.host, url.explicit_port
        plain = URL.build(scheme="https", host=host or "", port=port)
    except ValueError as exc:
        raise ConfigError(f"{text[:200]!r} is not an address; write https://host:port") from exc
    if url.scheme == "http":
        raise ConfigError(f"{text[:200]!r} is plain HTTP; a coordinator speaks TLS only: write https://host:port")
    if url.scheme != "https" or not host or url.user or url.path.strip("/") or url.query_string:
        raise ConfigError(f"{text[:200]!r} is not a coordinator's address; write https://host:port")
    return str(plain).rstrip("/")


def checked_coordinator_urls(text: str) -> tuple[str, ...]:
    """The addresses in a list that is separated by commas, each once.

    Raises:
        ConfigError: one of them is no address, or there is none.
    """
    parts = [part for part in text.split(",") if part.strip()] or [""]
    return tuple(dict.fromkeys(checked_coordinator_url(part) for part in parts))


async def first_answer(urls: deque[str], ask: Callable[[str], Awaitable[T]]) -> T:
    """What the first address says that answers at all; it then stands first in `urls`."""
    failures: list[UnreachableError] = []
    for url in tuple(urls):
        try:
            answer = await ask(url)
        except UnreachableError as exc:
            failures.append(exc)
        except BrigadeError:
            _put_first(urls, url)
            raise
        else:
            _put_first(urls, url)
            return answer
    if len(failures) == 1:
        raise failures[0]
    reasons = "; ".join(failure.message for failure in failures)
    raise UnreachableError(f"none of the coordinator's {len(failures)} addresses answers: {reasons}")


def _put_first(urls: deque[str], url: str) -> None:
    urls.rotate(-urls.index(url))
