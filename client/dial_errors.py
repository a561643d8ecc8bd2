"""What goes wrong while a worker is dialled, as errors of `protocol/errors.py` that say what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from protocol.errors import BrigadeError, DrainingError, HopLostError, ProtocolVersionError
from protocol.http_answers import mistrusted
from protocol.http_connector import connecting_reason
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION

CONNECT_TIMEOUT_S = 10.0


class DialTurns:
    """Those who want a connection to one address: one dials, and who waited meanwhile hears of its failure too.

    Else each of them would spend the seconds that a dialling may take, one after the other.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._n_failed = 0
        self._failure: tuple[type[BrigadeError], str, float | None] | None = None

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Whose turn it is. BrigadeError: as a dialling failed that ended while this waited."""
        n_before = self._n_failed
        async with self._lock:
            if self._n_failed > n_before and self._failure is not None:
                kind, message, retry_after_s = self._failure
                raise kind(message, retry_after_s=retry_after_s)
            try:
                yield
            except BrigadeError as exc:
                self._n_failed += 1
                self._failure = (type(exc), exc.message, exc.retry_after_s)
                raise
            self._failure = None


@contextmanager
def dial_errors(worker_id: WorkerId, url: str) -> Iterator[None]:
    """Turn what aiohttp raises while dialling into our errors."""
    who = f"worker {worker_id} at {url}"
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise mistrusted(url, f"is not that of worker {worker_id}", exc.certificate_error) from exc
    except aiohttp.WSServerHandshakeError as exc:
        if exc.status == ProtocolVersionError.status:
            raise ProtocolVersionError(
                f"{who} doesn't speak protocol version {PROTOCOL_VERSION}: install the same major version of "
                "Brigade on both"
            ) from exc
        if exc.status == DrainingError.status:
            raise DrainingError(f"{who} is stopping and takes nothing new; try again") from exc
        raise HopLostError(f"{who} refused the connection with HTTP status {exc.status}") from exc
    except TimeoutError as exc:
        raise HopLostError(f"{who} didn't answer in {CONNECT_TIMEOUT_S:g} s") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise HopLostError(
            f"{who} can't be reached ({connecting_reason(exc)}): check that this machine can reach it, its port too"
        ) from exc
