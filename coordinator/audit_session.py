"""One question to one worker: a session of the data plane like any other, with the coordinator as its neighbour.

The worker runs it as it runs its clients' sessions, because to its program it is one. A worker that holds the first
blocks is given a prompt by a client and tokens by the tail; another one hidden states by the hop before. What it
hands on arrives at the hop after, which is the coordinator again.
"""

from __future__ import annotations

import array
import asyncio
import secrets
import ssl
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import aiohttp
from aiohttp import ClientWebSocketResponse, WSMsgType, web

from coordinator.audit_neighbours import CLOSE_S, Neighbour
from coordinator.policy.audit_probe import STEPS, Probe, Projection, projected, rows_of
from coordinator.policy.audit_schedule import ANSWER_S
from protocol.compatibility import VERSION_HEADER
from protocol.error_forms import error_from_body
from protocol.errors import BrigadeError, ProtocolError
from protocol.frames import Frame, decode_frames, encode_frame
from protocol.ids import SessionId, WorkerId
from protocol.messages import (
    PROTOCOL_VERSION,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SessionEnded,
    Step,
    ToWorker,
)
from protocol.tls import client_context, worker_name

Failure = Literal["unreachable", "busy", "faulty", "refused", "silent", "incapable"]
"""faulty: it says that the model is; incapable: its version can't be asked so."""

DIAL_S = 10.0
MAX_BACKWARD_BYTES = 2**16
"""Of what comes back to who opened the session: credit, and why it ended."""
FRAME_ROOM_BYTES = 2**12
"""Of a frame beside hidden states."""
FAILURES: Mapping[str, Failure] = {
    **dict.fromkeys(("overloaded", "draining", "stale_epoch", "not_found"), "busy"),
    **dict.fromkeys(("deadline_exceeded", "conflict", "clock_skew"), "busy"),
    "model_fault": "faulty",
}
"""By the codes with which an honest worker ends a session: it is loaded, leaves, holds other blocks by now, or
finds the ticket expired, since somebody's clock is wrong: maybe ours; or the model's weights are damaged. Who says
so each time that it is audited, and serves clients all the same, is found out (`policy.audit_evasion`). Any other
code is a refusal."""


class NoAnswerError(Exception):
    """The worker gave no answer: why, and in words."""

    def __init__(self, failure: Failure, words: str) -> None:
        super().__init__(words)
        self.failure = failure
        self.words = words


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Whom to ask what."""

    worker_id: WorkerId
    url: str
    session_id: SessionId
    ticket: str
    probe: Probe


def new_session_id() -> SessionId:
    """As those of generations."""
    return SessionId(secrets.token_hex(16))


def most_frame_bytes(probe: Probe) -> int:
    """The longest frame of an answer."""
    return max(probe.steps) * probe.hidden_size * 4 + FRAME_ROOM_BYTES


async def answer(asked: Asked, neighbour: Neighbour, ca_pem: str, *, within_s: float) -> Projection:
    """The projections of what the worker makes of the probe.

    Raises:
        NoAnswerError: there is none.
    """
    try:
        async with asyncio.timeout(within_s), aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            return await _Conversation(asked, neighbour, http).run(ca_pem)
    except TimeoutError as exc:
        raise NoAnswerError("silent", f"no answer within {within_s:g} s") from exc
    except BrigadeError as exc:
        raise NoAnswerError(FAILURES.get(exc.code, "refused"), exc.message) from exc


class _Conversation:
    """The sockets of one session, and what came over them."""

    def __init__(self, asked: Asked, neighbour: Neighbour, http: aiohttp.ClientSession) -> None:
        self._asked = asked
        self._neighbour = neighbour
        self._http = http
        self._came: asyncio.Queue[tuple[Step, bytes] | Exception] = asyncio.Queue(len(STEPS) + 4)
        self._next: web.WebSocketResponse | None = None
        self._ring: ClientWebSocketResponse | None = None

    async def run(self, ca_pem: str) -> Projection:
        probe = self._asked.probe
        if probe.takes_tokens:  # a client opens the session, and the tail is the neighbour
            opener = await self._dial(await asyncio.to_thread(client_context, ca_pem))
            self._ring = await self._dial(self._neighbour.as_client)
        else:
            opener = await self._dial(self._neighbour.as_client)
        reading = asyncio.TaskGroup()
        try:
            async with reading:
                tasks = [
                    reading.create_task(self._read_opener(opener), name="audit: backward"),
                    reading.create_task(self._read_next(), name="audit: onward"),
                ]
                rows = await self._rows(opener)
                for task in tasks:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            for socket in (opener, self._ring):
                if socket is not None:
                    await socket.close()
        return await asyncio.to_thread(projected, probe.seed, rows)

    async def _rows(self, opener: ClientWebSocketResponse) -> list[Sequence[float]]:
        session_id, probe = self._asked.session_id, self._asked.probe
        opening = OpenSession(
            session_id=session_id, tickets=(self._asked.ticket, self._neighbour.next_ticket), deadline_s=ANSWER_S
        )
        await _send(opener, opening)
        rows: list[Sequence[float]] = []
        for n_tokens in probe.steps:
            await self._send_step(opener, len(rows), n_tokens)
            end = len(rows) + n_tokens
            while len(rows) < end:
                came = await self._came.get()
                if isinstance(came, Exception):
                    raise came
                step, payload = came
                if step.position != len(rows) or step.position + step.n_tokens > end:
                    raise ProtocolError(f"a step of {step.n_tokens} at {step.position}; {len(rows)} comes next")
                rows.extend(await asyncio.to_thread(rows_of, step, payload, probe.hidden_size))
        await _send(opener, CloseSession(session_id=session_id, reason="finished"))
        return rows

    async def _send_step(self, opener: ClientWebSocketResponse, position: int, n_tokens: int) -> None:
        session_id, probe = self._asked.session_id, self._asked.probe
        is_prompt = n_tokens > 1
        if probe.takes_tokens and not is_prompt:
            (token_id,) = probe.token_ids(position, 1)
            assert self._ring is not None
            await _send(self._ring, FeedToken(session_id=session_id, position=position, token_id=token_id))
            return
        n_prompt = sum(n for n in probe.steps if n > 1)
        step = Step(
            session_id=session_id,
            position=position,
            n_tokens=n_tokens,
            dtype="int32" if probe.takes_tokens else "float32",
            is_last=not is_prompt or position + n_tokens == n_prompt,
        )
        if probe.takes_tokens:
            await _send(opener, step, _int32(probe.token_ids(position, n_tokens)))
        else:
            await _send(opener, step, await asyncio.to_thread(probe.states, position, n_tokens))

    async def _read_opener(self, opener: ClientWebSocketResponse) -> None:
        """What comes back: credit, that it is open, or its end. Reading answers the worker's pings, too."""
        async for frame in _frames(opener):
            message = frame.message
            if isinstance(message, SessionEnded) and message.session_id == self._asked.session_id:
                if message.worker_id == self._neighbour.worker_id:
                    self._put(NoAnswerError("unreachable", f"it can't hand on: {message.error.message}"))
                else:
                    self._put(error_from_body(message.error))
        self._put(ProtocolError("it closed the connection before the session was over"))

    async def _read_next(self) -> None:
        socket = await self._neighbour.arrived
        async for frame in _frames(socket):
            if isinstance(frame.message, Step):
                await _send(socket, Credit(session_id=self._asked.session_id, n_steps=1))
                self._put((frame.message, bytes(frame.payload)))
            elif isinstance(frame.message, CloseSession):
                break

    def _put(self, what: tuple[Step, bytes] | Exception) -> None:
        if self._came.full():
            self._came.get_nowait()
            what = ProtocolError("it hands on more than it was given")
        self._came.put_nowait(what)

    async def _dial(self, context: ssl.SSLContext) -> ClientWebSocketResponse:
        try:
            async with asyncio.timeout(DIAL_S):
                return await self._http.ws_connect(
                    self._asked.url.rstrip("/") + "/v1/data",
                    ssl=context,
                    server_hostname=worker_name(self._asked.worker_id),
                    headers={VERSION_HEADER: PROTOCOL_VERSION},
                    max_msg_size=MAX_BACKWARD_BYTES,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                )
        except aiohttp.WSServerHandshakeError as exc:
            words = f"it refuses the connection with HTTP status {exc.status}"
            raise NoAnswerError(
                "busy" if exc.status == web.HTTPServiceUnavailable.status_code else "refused", words
            ) from exc
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            words = f"the coordinator can't reach it at {self._asked.url} ({type(exc).__name__})"
            raise NoAnswerError("unreachable", words) from exc


async def _frames(socket: ClientWebSocketResponse | web.WebSocketResponse) -> AsyncIterator[Frame]:
    """What comes, until the connection ends."""
    async for message in socket:
        if message.type is not WSMsgType.BINARY:
            break
        for frame in decode_frames(message.data):
            yield frame


async def _send(
    socket: ClientWebSocketResponse | web.WebSocketResponse, message: ToWorker | Credit, payload: bytes = b""
) -> None:
    """On a connection that is gone nothing is sent: its reader says so."""
    with suppress(ConnectionError):
        await socket.send_bytes(encode_frame(message, payload))


def _int32(token_ids: Sequence[int]) -> bytes:
    values = array.array("i", token_ids)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
