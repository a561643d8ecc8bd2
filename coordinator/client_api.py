"""What clients ask: who answers here, which models there are, manifests and files, a route for a generation."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import AUTHORITY, CALLER, CATALOGUE, CLOCK, CLUSTER, REPOSITORY, TICKET_DESK
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.routing import Route, cheapest_route
from coordinator.policy.state import ModelRecord
from coordinator.policy.views import model_info
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.errors import ContextExceededError, InvalidRequestError, ModelUnavailableError
from protocol.ids import SessionId
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello, ModelInfo, ModelList, RouteGrant, RouteRequest

RETRY_UNAVAILABLE_S = 2.0
"""A worker that loads becomes ready within seconds."""
MAX_EXCLUDED = 1000


def add_client_routes(app: web.Application) -> None:
    """Put the clients' routes in."""
    add_route(app, "open", "GET", "/v1/hello", hello)
    add_route(app, "open", "GET", "/v1/ca", ca)
    add_route(app, "client", "GET", "/v1/models", models)
    add_route(app, "client", "GET", "/v1/models/{name}", model)
    add_route(app, "client", "POST", "/v1/routes", routes)
    add_route(app, "reader", "GET", "/v1/manifests/{revision}", manifest)
    add_route(app, "reader", "GET", "/v1/files/{sha256}", file)


async def hello(request: web.Request) -> web.Response:
    """-> `Hello`."""
    return json_answer(
        Hello(
            protocol_version=PROTOCOL_VERSION,
            coordinator_id=request.app[AUTHORITY].coordinator_id,
            time_s=request.app[CLOCK](),
        )
    )


async def ca(request: web.Request) -> web.Response:
    """-> the cluster CA's certificate, PEM."""
    return web.Response(text=request.app[AUTHORITY].ca_pem, content_type="application/x-pem-file")


async def models(request: web.Request) -> web.Response:
    """-> `ModelList`."""
    return json_answer(ModelList(models=model_infos(request)))


async def model(request: web.Request) -> web.Response:
    """-> `ModelInfo`."""
    found = request.app[CATALOGUE].model(request.match_info["name"])
    return json_answer(model_info(request.app[CLUSTER].state, found.name, request.app[CLOCK]()))


def model_infos(request: web.Request) -> tuple[ModelInfo, ...]:
    """Every model as it stands now."""
    state, now_s = request.app[CLUSTER].state, request.app[CLOCK]()
    return tuple(model_info(state, name, now_s) for name in state.models)


async def manifest(request: web.Request) -> web.Response:
    """-> the manifest's bytes, which its revision is the hash of."""
    data = request.app[CATALOGUE].manifest_bytes(request.match_info["revision"])
    return web.Response(body=data, content_type="application/json")


async def file(request: web.Request) -> web.StreamResponse:
    """-> the file's bytes, or the range of them that is asked for."""
    path = request.app[CATALOGUE].file_path(request.match_info["sha256"])
    return web.FileResponse(path, chunk_size=2**18, headers={"Content-Type": "application/octet-stream"})


async def routes(request: web.Request) -> web.Response:
    """`RouteRequest` -> `RouteGrant`. One transaction: the generation is recorded, or there is no route."""
    wanted = await read_json(request, RouteRequest)
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    found = request.app[CATALOGUE].model(wanted.model)
    _check_fits(found, wanted)
    route = _route(request, wanted)
    now_s = request.app[CLOCK]()
    session_id = SessionId(secrets.token_hex(16))
    max_positions = wanted.n_prompt_tokens + wanted.max_tokens
    desk = request.app[TICKET_DESK]
    hops = desk.hops(
        route.hops,
        session_id=session_id,
        model=found.name,
        revision=found.revision,
        max_positions=max_positions,
        now_s=now_s,
    )
    attach_ticket = desk.attach_ticket(route.hops, session_id=session_id, max_positions=max_positions, now_s=now_s)
    await request.app[REPOSITORY].record_generation(
        session_id,
        caller.key_id,
        found.name,
        found.revision,
        [(hop.worker_id, hop.blocks.start, hop.blocks.end) for hop in hops],
        wanted.n_prompt_tokens,
        wanted.max_tokens,
        datetime.fromtimestamp(now_s, UTC),
    )
    return json_answer(
        RouteGrant(
            session_id=session_id,
            model=found.name,
            revision=found.revision,
            hops=hops,
            attach_ticket=attach_ticket,
            expires_in_s=TICKET_LIFE_S,
        )
    )


def _check_fits(found: ModelRecord, wanted: RouteRequest) -> None:
    context_length = found.manifest.context_length
    n_wanted = wanted.n_prompt_tokens + wanted.max_tokens
    if n_wanted > context_length:
        raise ContextExceededError(
            f"the prompt's {wanted.n_prompt_tokens} tokens and max_tokens {wanted.max_tokens} are {n_wanted} "
            f"together; {found.name} takes {context_length}: shorten the prompt or ask for at most "
            f"{max(0, context_length - wanted.n_prompt_tokens)}"
        )


def _route(request: web.Request, wanted: RouteRequest) -> Route:
    if len(wanted.exclude) > MAX_EXCLUDED:
        raise InvalidRequestError(f"{len(wanted.exclude)} workers excluded; at most {MAX_EXCLUDED}")
    state = request.app[CLUSTER].state
    route = cheapest_route(
        state, wanted.model, frozenset(wanted.exclude), wanted.n_prompt_tokens, wanted.max_tokens
    )
    if isinstance(route, Route):
        return route
    raise ModelUnavailableError(route.message, retry_after_s=RETRY_UNAVAILABLE_S)
