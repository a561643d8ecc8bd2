"""What goes wrong while a worker is dialled, as errors of `protocol/errors.py` that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from protocol.errors import DrainingError, HopLostError, ProtocolVersionError
from protocol.http_answers import mistrusted
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION

CONNECT_TIMEOUT_S = 10.0


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
            f"{who} can't be reached ({reason_of(exc)}): check that this machine can reach it, its port too"
        ) from exc


def reason_of(exc: BaseException) -> str:
    """In the system's words."""
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
