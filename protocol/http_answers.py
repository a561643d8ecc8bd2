"""Answers of HTTP servers, read within limits and turned into our errors. Knows nothing of who asks what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import aiohttp
import msgspec

from protocol.codec import MAX_BODY_BYTES
from protocol.error_forms import error_from_body
from protocol.errors import (
    BrigadeError,
    ErrorBody,
    QuotaExceededError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.http_connector import connecting_reason
from protocol.rest import ErrorAnswer

_MAX_MESSAGE_CHARS = 2000
_NOT_NOW = (9, 10)
"""OpenSSL's codes of certificates that aren't good yet, and of those that were (X509_V_ERR_CERT_...)."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")


async def read_body(response: aiohttp.ClientResponse, max_bytes: int = MAX_BODY_BYTES) -> bytes:
    """The answer's whole body.

    Raises:
        TooLargeError: it is longer than `max_bytes`; the rest was not read.
    """
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > max_bytes:
            response.close()
            raise TooLargeError(f"{response.url.host} answered with more than {max_bytes} bytes")
    return bytes(data)


def error_of(response: aiohttp.ClientResponse, body: bytes) -> BrigadeError:
    """The error that an answer with a status other than success stands for.

    The text in it may come from a stranger: it is cut, and nothing in it can move a terminal's cursor.
    """
    try:
        answer = msgspec.json.decode(body, type=ErrorAnswer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return UnreachableError(
            f"{response.url.origin()} answers {response.method} {response.url.path} with HTTP status "
            f"{response.status}, not as a Brigade program does: check the address and port, and whether a proxy is "
            "in between"
        )
    text = _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", answer.error.message)[:_MAX_MESSAGE_CHARS]
    error = error_from_body(
        ErrorBody(code=answer.error.code, message=text, retry_after_s=answer.error.retry_after_s)
    )
    if isinstance(error, QuotaExceededError):
        error.rates = answer.rates
    return error


@contextmanager
def connection_errors(url: str) -> Iterator[None]:
    """Turn what aiohttp raises on the way to the coordinator at `url` into our errors."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise mistrusted(url, "is not the one of this cluster's coordinator", exc.certificate_error) from exc
    except aiohttp.ClientSSLError as exc:
        raise UnreachableError(
            f"{url} answers, but not with TLS 1.3 as a Brigade coordinator does: check the address and port"
        ) from exc
    except TimeoutError as exc:
        raise UnreachableError(
            f"the coordinator at {url} didn't answer in time: check the address, the network and the firewall"
        ) from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise UnreachableError(
            f"no coordinator answers at {url} ({connecting_reason(exc)}): check that `coord serve` runs there and "
            "that the address and the port are right"
        ) from exc


def mistrusted(url: str, is_anothers: str, why: Exception) -> UnauthenticatedError:
    """What is wrong with a certificate that wasn't taken: in these words another's, or not good at this time."""
    if getattr(why, "verify_code", None) in _NOT_NOW:
        return UnauthenticatedError(
            f"the certificate that {url} shows isn't good at this time ({why}), which is by this machine's "
            f"clock {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: set the clock that is wrong, here or there"
        )
    return UnauthenticatedError(
        f"the certificate that {url} shows {is_anothers} ({why}): somebody may be in between"
    )
