"""What workers ask over HTTP: to join, for their control socket, for others who have a file."""

from __future__ import annotations

import structlog
from aiohttp import web

from coordinator.control_socket import ControlSocket
from coordinator.credentials import WorkerCaller
from coordinator.keys import (
    AUTHENTICATOR,
    BAD_SOURCES,
    CALLER,
    CLOCK,
    CLUSTER,
    CONTROL_SOCKETS,
    EXAMINER,
    JOIN_LIMITER,
    JOINING,
    OPENINGS,
    REPORTS,
    REPOSITORY,
    SESSION_ENDS,
    TICKET_DESK,
    TRUST_REPORTS,
)
from coordinator.middleware import add_route, json_answer, read_body, read_json
from coordinator.policy.effects import WriteAudit
from coordinator.policy.events import WorkerJoined, WorkerNotComing
from coordinator.policy.views import file_sources
from coordinator.route_docs import RouteDoc
from protocol.codec import MAX_CONTROL_BYTES
from protocol.compatibility import VERSION_HEADER, spoken_version
from protocol.errors import (
    ClockSkewError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    WrongSecretError,
)
from protocol.handshake import PROOF_HEADER
from protocol.host_names import rate_key
from protocol.ids import FileHash
from protocol.messages import PROTOCOL_VERSION
from protocol.worker_rest import (
    BadSource,
    Challenge,
    ChallengeRequest,
    JoinGrant,
    JoinRequest,
    NotComing,
    Source,
    SourcesAnswer,
    SourcesRequest,
)

log = structlog.get_logger(__name__)

PING_S = 5.0
MAX_SOURCES_FILES = 10_000

CHALLENGE_DOC = RouteDoc(
    "Ask to join: the first step.", body=ChallengeRequest, answer=Challenge, errors=(OverloadedError,)
)
JOIN_DOC = RouteDoc(
    "Join with the proof in Brigade-Proof; the answer has the coordinator's.",
    body=JoinRequest,
    answer=JoinGrant,
    errors=(WrongSecretError, ClockSkewError, ForbiddenError, OverloadedError),
)
CONTROL_DOC = RouteDoc("Open the control socket: a WebSocket.", answer=None, status=101)
NOT_COMING_DOC = RouteDoc(
    "Say that this worker, which was let in, ends before it connects.", body=NotComing, answer=None, status=204
)
SOURCES_DOC = RouteDoc("Ask who else has files.", body=SourcesRequest, answer=SourcesAnswer)
BAD_SOURCE_DOC = RouteDoc(
    "Report that a worker sent wrong bytes.", body=BadSource, answer=None, status=204, errors=(NotFoundError,)
)


def add_worker_routes(app: web.Application) -> None:
    """Put the workers' routes in."""
    add_route(app, "open", "POST", "/v1/join/challenge", challenge, CHALLENGE_DOC)
    add_route(app, "open", "POST", "/v1/join", join, JOIN_DOC)
    add_route(app, "worker", "GET", "/v1/worker/control", control, CONTROL_DOC)
    add_route(app, "worker", "POST", "/v1/worker/not-coming", not_coming, NOT_COMING_DOC)
    add_route(app, "worker", "POST", "/v1/worker/sources", sources, SOURCES_DOC)
    add_route(app, "worker", "POST", "/v1/worker/sources/bad", bad_source, BAD_SOURCE_DOC)


async def challenge(request: web.Request) -> web.Response:
    """`ChallengeRequest` -> `Challenge`."""
    _count_attempt(request)
    return json_answer(request.app[JOINING].challenge(await read_json(request, ChallengeRequest)))


async def join(request: web.Request) -> web.Response:
    """`JoinRequest` with its proof -> `JoinGrant` with the coordinator's."""
    _count_attempt(request)
    if request.query_string:
        raise InvalidRequestError("joining takes no query: the proof wouldn't cover it")
    proofs = request.headers.getall(PROOF_HEADER, [])
    if len(proofs) != 1:
        raise UnauthenticatedError(f"one header {PROOF_HEADER} is needed; {len(proofs)} were sent")
    granted = await request.app[JOINING].grant(await read_body(request), proofs[0])
    joined = WorkerJoined(
        worker_id=granted.worker_id, invite_id=granted.invite_id, token_until_s=granted.token_until_s
    )
    await request.app[CLUSTER].handle(joined)
    return web.Response(body=granted.body, content_type="application/json", headers={PROOF_HEADER: granted.proof})


async def control(request: web.Request) -> web.WebSocketResponse:
    """The control socket, for as long as it lasts."""
    caller = _worker(request)
    socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_CONTROL_BYTES, compress=False)
    socket.headers[VERSION_HEADER] = PROTOCOL_VERSION
    if not socket.can_prepare(request):
        raise InvalidRequestError("this is a WebSocket: ask with Upgrade: websocket")
    await socket.prepare(request)
    control_socket = ControlSocket(
        socket,
        worker_id=caller.worker_id,
        connects_from=_peer(request),
        cluster=request.app[CLUSTER],
        reports=request.app[REPORTS],
        openings=request.app[OPENINGS],
        ends=request.app[SESSION_ENDS],
    )
    request.app[CONTROL_SOCKETS][control_socket] = caller
    try:
        if not request.app[AUTHENTICATOR].is_in_force(caller):  # rotated away while this one was being opened
            await control_socket.close()
            return socket
        with (
            request.app[TICKET_DESK].serving(caller.worker_id, caller.ticket_key, spoken_version(request.headers)),
            request.app[EXAMINER].reached_at(caller.worker_id, request.host),
        ):
            await control_socket.run()
    finally:
        del request.app[CONTROL_SOCKETS][control_socket]
    return socket


async def not_coming(request: web.Request) -> web.Response:
    """`NotComing`: it isn't awaited any more. Nothing changes if it is here, or has enrolled again since."""
    said, caller = await read_json(request, NotComing), _worker(request)
    event = WorkerNotComing(worker_id=caller.worker_id, reason=said.reason, token_until_s=caller.token_until_s)
    await request.app[CLUSTER].handle(event)
    return web.Response(status=204)


async def sources(request: web.Request) -> web.Response:
    """`SourcesRequest` -> `SourcesAnswer`."""
    body = await read_json(request, SourcesRequest)
    if len(body.files) > MAX_SOURCES_FILES:
        raise InvalidRequestError(f"{len(body.files)} files; ask for at most {MAX_SOURCES_FILES} at once")
    found = file_sources(request.app[CLUSTER].state, body.files, _worker(request).worker_id)
    return json_answer(SourcesAnswer(sources=_usable(request, found)))


def _usable(request: web.Request, found: dict[FileHash, tuple[Source, ...]]) -> dict[FileHash, tuple[Source, ...]]:
    bad_sources, now_s = request.app[BAD_SOURCES], request.app[CLOCK]()
    usable = {
        file: tuple(source for source in named if not bad_sources.is_bad(source.worker_id, file, now_s))
        for file, named in found.items()
    }
    return {file: named for file, named in usable.items() if named}


async def bad_source(request: web.Request) -> web.Response:
    """`BadSource`: from now on that worker is named to nobody for that file. Said again, nothing happens."""
    body = await read_json(request, BadSource)
    reporter, now_s = _worker(request).worker_id, request.app[CLOCK]()
    accused = request.app[CLUSTER].state.workers.get(body.worker_id)
    if accused is None or body.file not in accused.files or body.worker_id == reporter:
        raise NotFoundError("no other worker of that id has that file: there is nothing to report")
    if request.app[BAD_SOURCES].add(body.worker_id, body.file, now_s):
        log.warning("bad_source", worker_id=body.worker_id, file=body.file, reported_by=reporter)
        line = WriteAudit(
            at_s=now_s, action="bad_source", subject=body.worker_id, details=f"{body.file}, says {reporter}"
        )
        await request.app[REPOSITORY].apply([line])
        request.app[TRUST_REPORTS].take_bad_source(body.worker_id, reporter, body.file)
    return web.Response(status=204)


def _worker(request: web.Request) -> WorkerCaller:
    caller = request[CALLER]
    assert isinstance(caller, WorkerCaller)  # the route's access says so
    return caller


def _count_attempt(request: web.Request) -> None:
    request.app[JOIN_LIMITER].check(rate_key(_peer(request)), request.app[CLOCK]())


def _peer(request: web.Request) -> str:
    """The other end of the connection itself; what headers say of it isn't believed."""
    name = request.transport.get_extra_info("peername") if request.transport is not None else None
    return str(name[0]) if name else ""
