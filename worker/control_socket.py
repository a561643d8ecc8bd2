"""Opening the control socket, reading it, and what its errors mean."""

from __future__ import annotations

import asyncio

import aiohttp

from protocol.codec import MAX_CONTROL_BYTES, decode_message
from protocol.compatibility import VERSION_HEADER, spoken_version
from protocol.control_messages import CoordinatorToWorker
from protocol.errors import (
    BrigadeError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    ProtocolVersionError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.http_connector import connecting_reason
from protocol.messages import PROTOCOL_VERSION
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
                headers={
                    "Authorization": f"Bearer {credentials.session_token}",
                    VERSION_HEADER: PROTOCOL_VERSION,
                },
                server_hostname=COORDINATOR_NAME,
                max_msg_size=MAX_CONTROL_BYTES,
                heartbeat=_PING_S,
                compress=0,
            )
    except aiohttp.WSServerHandshakeError as exc:
        raise _refusal(exc) from exc
    except TimeoutError as exc:
        raise UnreachableError(f"{credentials.coordinator_url} can't be reached: no answer") from exc
    except (aiohttp.ClientError, OSError) as exc:
        raise UnreachableError(f"{credentials.coordinator_url} can't be reached: {connecting_reason(exc)}") from exc


def spoken_by(socket: aiohttp.ClientWebSocketResponse) -> str:
    """The protocol version of the coordinator at the other end, as it says."""
    return spoken_version(socket._response.headers)  # noqa: SLF001 - aiohttp has no public way to them


async def received_order(socket: aiohttp.ClientWebSocketResponse) -> CoordinatorToWorker:
    """What the coordinator says next.

    Raises:
        UnreachableError: the socket is closed or broken, or it says what belongs elsewhere.
        ProtocolError: it says what no coordinator of this protocol says.
    """
    try:
        frame = await socket.receive()  # ends without a timeout of its own: the pings see to that
    except (aiohttp.ClientError, OSError) as exc:  # pinged at the moment when the connection broke
        raise UnreachableError(f"the control socket broke: {exc}") from exc
    match frame.type:
        case aiohttp.WSMsgType.BINARY:
            order: CoordinatorToWorker = decode_message(frame.data, CoordinatorToWorker)
            return order
        case aiohttp.WSMsgType.CLOSE | aiohttp.WSMsgType.CLOSING | aiohttp.WSMsgType.CLOSED:
            raise UnreachableError("the coordinator closed the control socket")
        case aiohttp.WSMsgType.ERROR:
            raise UnreachableError(f"the control socket broke: {frame.data}")
        case other:
            raise UnreachableError(f"the coordinator sent a {other.name} message on the control socket")


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
            return ProtocolVersionError(
                f"the coordinator doesn't speak this worker's protocol version, {PROTOCOL_VERSION}: install the "
                "same major version of Brigade on both"
            )
        case status:
            return UnreachableError(f"the coordinator answered the control socket's request with status {status}")
