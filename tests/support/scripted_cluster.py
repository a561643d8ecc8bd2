"""A coordinator and workers that speak the protocol over real TLS, with a script in the model's place.

A peer for tests of the client: it runs no line of the coordinator's or worker's own code. The head and the tail
hand over to each other in memory, the client's side of the protocol is on the wire.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from protocol.api_key import ApiKey, new_api_key
from protocol.compatibility import VERSION_HEADER
from protocol.errors import BrigadeError, ErrorBody, NotFoundError, UnauthenticatedError
from protocol.frames import Frame, decode_frames, encode_frame
from protocol.ids import BlockRange, CoordinatorId, FileHash, ModelName, SessionId, WorkerId
from protocol.manifest import Manifest, ModelFile, encode_manifest, revision_of
from protocol.messages import (
    PROTOCOL_VERSION,
    AttachTail,
    CloseSession,
    FinishReason,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from protocol.rest import Hello, HopFailure, ModelInfo, ModelList, RouteGrant, RouteHop, RouteRequest
from protocol.tls import COORDINATOR_NAME
from tests.support.pki import TestAuthority
from tests.support.served import Served, serving
from tests.support.tiny_tokenizer import tiny_files

DEADLINE_S = 45.0
"""For a program, too, that first imports all it needs, beside others that compute; a test has a minute."""


@dataclass(kw_only=True)
class Script:
    """What the workers do in an attempt at a generation; the tail's tokens have the numbers 0, 1, 2..."""

    answer: tuple[int, ...] = ()
    n_cached: int = 0
    """Positions that the head says it has."""
    finish: FinishReason = "stop"
    stop_short: bool = False
    """After the answer say no more, as a worker does that hangs."""
    has_room: bool = True
    """Without room the head doesn't say that the session is open, as one that waits for memory doesn't."""
    is_outgrown: bool = False
    """Whether the last token says so."""
    indexes: tuple[int, ...] | None = None
    """Numbers to send in place of 0, 1, 2..."""
    ends_with: ErrorBody | None = None
    """After the answer, in place of finishing."""
    head_ends_with: ErrorBody | None = None
    """When the prompt comes."""
    blames: WorkerId | None = None
    """Named by `ends_with` and `head_ends_with` in the speaker's place."""
    noticed_by: WorkerId | None = None
    """Likewise: who noticed it."""
    head_drops_connection: bool = False
    """When the prompt comes."""
    on_answered: Callable[[], Awaitable[None]] | None = None
    """Awaited after the answer, before the end."""
    drops_connection: bool = False
    """After the answer, in place of finishing."""
    route_error: ErrorBody | None = None
    handshake_status: int | None = None
    """Answered to whoever connects to a worker, in place of a socket."""
    raw: bytes | None = None
    """Sent by the tail before anything else."""
    raw_at_end: bytes | None = None
    """Sent by the tail after the answer."""
    worker_urls: dict[int, str] = field(default_factory=dict)
    """By place in the route: granted in the place of the worker's own."""


@dataclass(kw_only=True)
class SeenSession:
    """What the workers saw of one generation."""

    opening: OpenSession | None = None
    prompt_step: Frame | None = None
    attached: AttachTail | None = None
    attached_prompt: bytes = b""
    tail_socket: web.WebSocketResponse | None = None
    closed: dict[WorkerId, str] = field(default_factory=dict)
    is_sending: bool = False


class ScriptedCluster:
    """The peer. Change `script` at any time; `attempts` come before it, one a route. `seen` is what came."""

    def __init__(self, authority: TestAuthority, *, files: dict[str, bytes], context_length: int) -> None:
        self.authority = authority
        self.script = Script()
        self.attempts: list[Script] = []
        self.scripts: dict[SessionId, Script] = {}
        self.has_route = asyncio.Event()
        self.has_route.set()
        """Cleared: no route, for as long as the client lets it be waited for; then `no_route`."""
        self.no_route = ErrorBody(code="model_loading", message="blocks 0:1 are loading", retry_after_s=0.05)
        self.known_sessions: frozenset[SessionId] | None = None
        """That may be continued; None: all."""
        self.served: list[Served] = []
        """The coordinator at each of its addresses."""
        self.api_key: ApiKey = new_api_key("client", authority.fingerprint)
        self.url = ""
        self.workers: list[tuple[WorkerId, str]] = []
        self.seen: dict[SessionId, SeenSession] = {}
        self.route_requests: list[RouteRequest] = []
        self.fetched: list[str] = []
        self.n_worker_connections = 0
        self.is_model_chat = "chat_template.jinja" in files
        self.context_length = context_length
        self.contents = {hashlib.sha256(data).hexdigest(): data for data in files.values()}
        self.manifest = encode_manifest(scripted_manifest(files, context_length))
        self.revision = revision_of(self.manifest)
        self.model_names = ["tiny"]
        self.changed = asyncio.Condition()

    @property
    def key_text(self) -> str:
        return self.api_key.text()

    @property
    def sampling(self) -> SamplingParams:
        """Of the latest generation."""
        attached = self.latest.attached
        assert attached is not None
        return attached.sampling

    @property
    def latest(self) -> SeenSession:
        return list(self.seen.values())[-1]

    @property
    def prompt_ids(self) -> list[int]:
        """Of the latest generation."""
        frame = self.latest.prompt_step
        assert frame is not None
        return memoryview(bytes(frame.payload)).cast("i").tolist()

    @property
    def latest_script(self) -> Script:
        """Of the latest route; before the first, the one of all."""
        return list(self.scripts.values())[-1] if self.scripts else self.script

    @property
    def failures(self) -> list[HopFailure | None]:
        """What the client reported with each request for a route."""
        return [request.failure for request in self.route_requests]

    async def until_closed(self, reason: str) -> None:
        """Wait until head and tail of the latest generation have been told that it is over."""
        ids = {self.workers[0][0], self.workers[-1][0]}

        def is_closed() -> bool:
            closed = self.latest.closed
            return set(closed) >= ids and set(closed.values()) == {reason}

        await self.until(is_closed)

    async def until(self, condition: object) -> None:
        assert callable(condition)
        async with asyncio.timeout(DEADLINE_S), self.changed:
            await self.changed.wait_for(condition)

    # ---------------------------------------------------------------- the coordinator

    def coordinator(self) -> web.Application:
        app = web.Application(middlewares=[_errors])
        app.router.add_get("/v1/ca", self._ca)
        app.router.add_get("/v1/hello", self._hello)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name}", self._model)
        app.router.add_get("/v1/manifests/{revision}", self._manifest)
        app.router.add_get("/v1/files/{sha256}", self._file)
        app.router.add_post("/v1/routes", self._route)
        return app

    async def _ca(self, request: web.Request) -> web.Response:
        return web.Response(text=self.authority.ca_pem)

    async def _hello(self, request: web.Request) -> web.Response:
        return _json(Hello(protocol_version=PROTOCOL_VERSION, coordinator_id=CoordinatorId("c-test"), time_s=0.0))

    async def _models(self, request: web.Request) -> web.Response:
        self._check_key(request)
        return _json(ModelList(models=tuple(self._info(name) for name in self.model_names)))

    async def _model(self, request: web.Request) -> web.Response:
        self._check_key(request)
        name = request.match_info["name"]
        if name not in self.model_names:
            raise NotFoundError(f"there is no model {name}; there are {', '.join(self.model_names)}")
        return _json(self._info(name))

    async def _manifest(self, request: web.Request) -> web.Response:
        self._check_key(request)
        self.fetched.append("manifest")
        return web.Response(body=self.manifest)

    async def _file(self, request: web.Request) -> web.Response:
        self._check_key(request)
        self.fetched.append(request.match_info["sha256"])
        return web.Response(body=self.contents[request.match_info["sha256"]])

    async def _route(self, request: web.Request) -> web.Response:
        self._check_key(request)
        asked = msgspec.json.decode(await request.read(), type=RouteRequest)
        self.route_requests.append(asked)
        if self.script.route_error is not None:
            return web.json_response({"error": msgspec.to_builtins(self.script.route_error)}, status=503)
        if self.known_sessions is not None and asked.continues not in {None, *self.known_sessions}:
            raise NotFoundError("there is no such session")
        if not await self._has_route(asked.wait_s):
            return web.json_response({"error": msgspec.to_builtins(self.no_route)}, status=503)
        session_id = SessionId(f"s-{len(self.route_requests)}")
        self.seen[session_id] = SeenSession()
        script = self.scripts[session_id] = self.attempts.pop(0) if self.attempts else self.script
        n_workers = len(self.workers)
        hops = tuple(
            RouteHop(
                worker_id=worker_id,
                url=script.worker_urls.get(i, url),
                blocks=BlockRange(i, i + 1 if i < n_workers - 1 else 10),
                precision="float32",
                ticket=f"ticket-{session_id}-{worker_id}",
            )
            for i, (worker_id, url) in enumerate(self.workers)
        )
        return _json(
            RouteGrant(
                session_id=session_id,
                model=asked.model,
                revision=self.revision,
                hops=hops,
                attach_ticket=f"attach-{session_id}",
                expires_in_s=60.0,
            )
        )

    async def _has_route(self, wait_s: float) -> bool:
        async with self.changed:
            self.changed.notify_all()
        try:
            async with asyncio.timeout(wait_s):
                await self.has_route.wait()
        except TimeoutError:
            return self.has_route.is_set()
        return True

    def _check_key(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {self.key_text}":
            raise UnauthenticatedError("no such key")

    def _info(self, name: str) -> ModelInfo:
        return ModelInfo(
            name=ModelName(name),
            revision=self.revision,
            state="ready",
            reason="",
            architecture="LlamaForCausalLM",
            n_blocks=10,
            context_length=self.context_length,
            size_bytes=10_000_000,
            is_chat=self.is_model_chat,
            coverage=(),
        )

    # ---------------------------------------------------------------- the workers

    def worker(self, worker_id: WorkerId) -> web.Application:
        async def data(request: web.Request) -> web.StreamResponse:
            assert request.headers["Brigade-Protocol"] == PROTOCOL_VERSION
            status = self.latest_script.handshake_status
            if status is not None:
                return web.Response(status=status)
            socket = web.WebSocketResponse(compress=False)
            socket.headers[VERSION_HEADER] = PROTOCOL_VERSION
            await socket.prepare(request)
            self.n_worker_connections += 1
            async with asyncio.TaskGroup() as answers:
                async for message in socket:
                    assert message.type is aiohttp.WSMsgType.BINARY
                    for frame in decode_frames(message.data):
                        await self._take(worker_id, socket, frame, answers)
            return socket

        app = web.Application()
        app.router.add_get("/v1/data", data)
        return app

    async def _take(
        self, worker_id: WorkerId, socket: web.WebSocketResponse, frame: Frame, answers: asyncio.TaskGroup
    ) -> None:
        message = frame.message
        session = self.seen[message.session_id]
        script = self.scripts.get(message.session_id, self.script)
        match message:
            case OpenSession():
                session.opening = message
                if script.has_room:
                    await _send(socket, SessionOpened(session_id=message.session_id, n_cached=script.n_cached))
            case Step():
                session.prompt_step = frame
                if script.head_ends_with is not None:
                    blamed = script.blames or worker_id
                    ended = _ended(message.session_id, blamed, script.head_ends_with, script.noticed_by)
                    await _send(socket, ended)
                    return
                if script.head_drops_connection:
                    await socket.close()
                    return
            case AttachTail():
                assert worker_id == self.workers[-1][0], "only the tail is attached to"
                session.attached, session.attached_prompt = message, bytes(frame.payload)
                session.tail_socket = socket
            case CloseSession():
                session.closed[worker_id] = message.reason
            case _:
                raise AssertionError(f"a client doesn't send {type(message).__name__}")
        is_ready = session.prompt_step is not None and session.attached is not None
        if is_ready and not session.is_sending and script.head_ends_with is None:
            session.is_sending = True
            answers.create_task(self._answer(message.session_id, session), name="answer")
        async with self.changed:
            self.changed.notify_all()

    async def _answer(self, session_id: SessionId, session: SeenSession) -> None:
        socket, script = session.tail_socket, self.scripts.get(session_id, self.script)
        assert socket is not None
        tail = self.workers[-1][0]
        if script.raw is not None:
            await socket.send_bytes(script.raw)
        indexes = script.indexes or tuple(range(len(script.answer)))
        goes_on = (
            script.stop_short
            or script.drops_connection
            or script.ends_with is not None
            or script.raw_at_end is not None
        )
        for number, (index, token_id) in enumerate(zip(indexes, script.answer, strict=True)):
            is_last = number == len(script.answer) - 1 and not goes_on
            reason = script.finish if is_last else None
            if socket.closed:
                return
            token = Token(
                session_id=session_id,
                index=index,
                token_id=token_id,
                finish_reason=reason,
                is_outgrown=is_last and script.is_outgrown,
            )
            await _send(socket, token)
        if script.on_answered is not None:
            await script.on_answered()
        if script.raw_at_end is not None:
            await socket.send_bytes(script.raw_at_end)
        if script.ends_with is not None:
            await _send(socket, _ended(session_id, script.blames or tail, script.ends_with, script.noticed_by))
        if script.drops_connection:
            await socket.close()


@asynccontextmanager
async def scripted_cluster(
    folder: Path,
    *,
    n_workers: int = 2,
    n_coordinators: int = 1,
    files: dict[str, bytes] | None = None,
    context_length: int = 1000,
    worker_certificate_name: str | None = None,
) -> AsyncIterator[ScriptedCluster]:
    """A cluster on loopback until the context ends; the name in its workers' certificates may be another's."""
    authority = TestAuthority()
    cluster = ScriptedCluster(
        authority, files=tiny_files() if files is None else files, context_length=context_length
    )
    async with AsyncExitStack() as running:
        shown = authority.worker(folder / "certificates", COORDINATOR_NAME)
        for _ in range(n_coordinators):
            cluster.served.append(await running.enter_async_context(serving(cluster.coordinator, shown)))
        cluster.url = ",".join(served.url for served in cluster.served)
        for _ in range(n_workers):
            shown = authority.worker(folder / "certificates", worker_certificate_name)
            app = functools.partial(cluster.worker, shown.worker_id)
            served = await running.enter_async_context(serving(app, shown))
            cluster.workers.append((shown.worker_id, served.url))
        yield cluster


@web.middleware
async def _errors(request: web.Request, handler: object) -> web.StreamResponse:
    assert callable(handler)
    try:
        response: web.StreamResponse = await handler(request)
    except BrigadeError as exc:
        return web.json_response({"error": msgspec.to_builtins(exc.body())}, status=exc.status)
    return response


async def _send(socket: web.WebSocketResponse, message: SessionOpened | Token | SessionEnded) -> None:
    try:
        await socket.send_bytes(encode_frame(message))
    except ConnectionError:
        return  # the client has gone, as some tests want


def _ended(
    session_id: SessionId, worker_id: WorkerId, error: ErrorBody, noticed_by: WorkerId | None
) -> SessionEnded:
    return SessionEnded(session_id=session_id, worker_id=worker_id, error=error, noticed_by=noticed_by)


def _json(body: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def scripted_manifest(files: dict[str, bytes], context_length: int) -> Manifest:
    blocks = tuple(ModelFile(name=f"{i}.safetensors", sha256=FileHash("0" * 64), size_bytes=1) for i in range(10))
    return Manifest(
        format_version=1,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=8,
        vocab_size=270,
        context_length=context_length,
        kv_elements_per_token=8,
        weights_dtype="float32",
        is_chat="chat_template.jinja" in files,
        blocks=blocks,
        before=(),
        after=(),
        auxiliary=tuple(
            ModelFile(name=name, sha256=FileHash(hashlib.sha256(data).hexdigest()), size_bytes=len(data))
            for name, data in sorted(files.items())
        ),
    )
