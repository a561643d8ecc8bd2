"""Opening the control socket, and what its errors mean."""

from __future__ import annotations

import asyncio

import aiohttp

from protocol.codec import MAX_CONTROL_BYTES
from protocol.errors import (
    BrigadeError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    ProtocolVersionError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.tls import COORDINATOR_NAME
from worker.enrolment import Credentials

_FINAL_CODES = frozenset(
    (ConflictError.code, ForbiddenError.code, InvalidRequestError.code, ProtocolVersionError.code)
)
_PATH = "/v1/worker/control"
_CONNECT_S = 10.0
_PING_S = 5.0
"""A socket whose other end has gone without a word is noticed after at most one and a half of these."""


async def opened_socket(
    session: aiohttp.ClientSession, credentials: Credentials
) -> aiohttp.ClientWebSocketResponse:
    """Open the socket.

    Raises:
        UnauthenticatedError: the session token is refused.
        UnreachableError: nobody answers, or not the coordinator of this cluster.
        BrigadeError: what else the coordinator answered.
    """
    try:
        async with asyncio.timeout(_CONNECT_S):
            return await session.ws_connect(
                credentials.coordinator_url + _PATH,
                headers={"Authorization": f"Bearer {credentials.session_token}"},
                server_hostname=COORDINATOR_NAME,
                max_msg_size=MAX_CONTROL_BYTES,
                heartbeat=_PING_S,
                compress=0,
            )
    except aiohttp.WSServerHandshakeError as exc:
        raise _refusal(exc) from exc
    except (TimeoutError, aiohttp.ClientError, OSError) as exc:
        raise UnreachableError(
            f"{credentials.coordinator_url} can't be reached: {str(exc) or 'no answer'}"
        ) from exc


def is_final(error: BrigadeError) -> bool:
    """Whether coming back would only bring the same again: this worker isn't wanted as it is."""
    return error.code in _FINAL_CODES


def _refusal(error: aiohttp.WSServerHandshakeError) -> BrigadeError:
    match error.status:
        case 401:
            return UnauthenticatedError("the coordinator no longer takes this worker's session token")
        case 403:
            return ForbiddenError("the coordinator refuses this worker")
        case 426:
            return ProtocolVersionError("the coordinator speaks another version of the protocol now")
        case status:
            return UnreachableError(f"the coordinator answered the control socket's request with status {status}")
