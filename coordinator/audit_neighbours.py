"""Who the coordinator is to a worker that it audits: a neighbour on a route, with an id made for this one time.

The cluster's CA is here, so a certificate of a worker's kind can be made for a key that nobody has used before.
With it the coordinator opens the session as the hop before; the hop after listens where the coordinator does, and
is told from it by the name that TLS asks for: whoever doesn't ask for the name of a neighbour of this moment, which
only the audited worker was given, gets nothing here, however often it knocks.
"""

from __future__ import annotations

import asyncio
import secrets
import ssl
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from coordinator.authority import Authority
from protocol.compatibility import VERSION_HEADER
from protocol.errors import BrigadeError, InvalidRequestError, OverloadedError
from protocol.frames import MAX_JOINED_BYTES, decode_frame, encode_frame
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION, OpenSession, SessionOpened
from protocol.private_keys import key_to_pem, new_key, public_key_der
from protocol.tls import client_context, server_context, worker_id_of_key, worker_name

FIRST_FRAME_S = 5.0
CLOSE_S = 2.0
MAX_SOCKETS = 4
"""To one neighbour at once: an audited worker needs one, and may try again."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbour:
    """The hop before and the hop after, in one."""

    worker_id: WorkerId
    as_client: ssl.SSLContext
    as_server: ssl.SSLContext
    max_frame_bytes: int
    """Of what the audited worker hands on."""
    next_ticket: str = field(default_factory=lambda: secrets.token_urlsafe(96), repr=False)
    """What the audited worker shows the next hop: nobody else has it."""
    arrived: asyncio.Future[web.WebSocketResponse]
    """The audited worker's socket to the next hop, its session opened."""
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Neighbours:
    """Those that there are now."""

    def __init__(self, authority: Authority, clock: Callable[[], float]) -> None:
        self._authority = authority
        self._clock = clock
        self._by_name: dict[str, Neighbour] = {}
        self._by_context: dict[ssl.SSLContext, Neighbour] = {}
        self._n_sockets: Counter[WorkerId] = Counter()

    @asynccontextmanager
    async def one(self, max_frame_bytes: int) -> AsyncIterator[Neighbour]:
        """A new neighbour, for as long as the context is open."""
        worker_id, as_client, as_server = await asyncio.to_thread(self._made)
        neighbour = Neighbour(
            worker_id=worker_id,
            as_client=as_client,
            as_server=as_server,
            max_frame_bytes=max_frame_bytes,
            arrived=asyncio.get_running_loop().create_future(),
        )
        self._by_name[worker_name(worker_id)] = neighbour
        self._by_context[as_server] = neighbour
        try:
            yield neighbour
        finally:
            del self._by_name[worker_name(worker_id)], self._by_context[as_server]
            neighbour.arrived.cancel()
            neighbour.over.set()

    def choose_certificate(self, tls: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        """For `SSLContext.sni_callback`: who dials a neighbour by its name is shown that one's certificate."""
        if name is not None and (neighbour := self._by_name.get(name)) is not None:
            tls.context = neighbour.as_server

    async def accept(self, request: web.Request) -> web.WebSocketResponse:
        """The data plane of the next hop: one session of an audited worker, for as long as the audit lasts."""
        tls = request.get_extra_info("ssl_object")
        neighbour = self._by_context.get(tls.context) if tls is not None else None
        if neighbour is None or self._n_sockets[neighbour.worker_id] >= MAX_SOCKETS:
            raise OverloadedError("no connection is expected here now")
        most = max(neighbour.max_frame_bytes, MAX_JOINED_BYTES)
        socket = web.WebSocketResponse(max_msg_size=most, compress=False, timeout=CLOSE_S)
        if not socket.can_prepare(request):
            raise InvalidRequestError("this is a WebSocket: ask with Upgrade: websocket")
        socket.headers[VERSION_HEADER] = PROTOCOL_VERSION
        self._n_sockets[neighbour.worker_id] += 1
        try:
            await socket.prepare(request)
            if await self._is_opened(socket, neighbour):
                neighbour.arrived.set_result(socket)
                await neighbour.over.wait()
            await socket.close()
        finally:
            self._n_sockets -= Counter([neighbour.worker_id])  # and nothing is kept of who is at 0
        return socket

    async def _is_opened(self, socket: web.WebSocketResponse, neighbour: Neighbour) -> bool:
        """Whether the first frame opens the session that this neighbour is there for."""
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                message = decode_frame(await socket.receive_bytes()).message
        except (BrigadeError, TimeoutError, TypeError):
            return False
        if not isinstance(message, OpenSession) or len(message.tickets) != 1:
            return False
        is_his = secrets.compare_digest(message.tickets[0].encode(), neighbour.next_ticket.encode())
        if not is_his or neighbour.arrived.done():
            return False
        with suppress(ConnectionError):
            await socket.send_bytes(encode_frame(SessionOpened(session_id=message.session_id)))
        return not neighbour.arrived.done()

    def _made(self) -> tuple[WorkerId, ssl.SSLContext, ssl.SSLContext]:
        key = new_key()
        worker_id = worker_id_of_key(public_key_der(key.public_key()))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, worker_id)])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
        certificate = self._authority.issue_worker_certificate(
            request.public_bytes(Encoding.PEM).decode(), worker_id, datetime.fromtimestamp(self._clock(), UTC)
        )
        with tempfile.TemporaryDirectory(prefix="brigade-") as folder:  # TLS reads them from files alone; 0700
            certificate_file, key_file = Path(folder) / "certificate.pem", Path(folder) / "key.pem"
            certificate_file.write_text(certificate)
            key_file.write_text(key_to_pem(key))
            return (
                worker_id,
                client_context(self._authority.ca_pem, certificate_file, key_file),
                server_context(certificate_file, key_file),
            )
