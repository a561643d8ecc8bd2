"""What clients ask: who answers here, which models there are, manifests and files, a route for a generation."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from msgspec import structs

from coordinator.credentials import KeyCaller
from coordinator.keys import AUTHORITY, CALLER, CATALOGUE, CLOCK, CLUSTER, METRICS, MODELS_LOOK, ROUTE_DESK, RUNNING
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.state import ClusterState, ModelRecord
from coordinator.policy.views import model_info
from coordinator.quota_desk import database_away
from coordinator.route_docs import Download, RouteDoc
from protocol.errors import (
    ConflictError,
    ContextExceededError,
    ForbiddenError,
    ModelLoadingError,
    ModelUnavailableError,
    NotFoundError,
    OverLimitError,
    OverloadedError,
    QuotaExceededError,
    StorageError,
)
from protocol.file_answers import file_answer
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello, ModelInfo, ModelList, RouteGrant, RouteRequest

PEM = Download("application/x-pem-file")
ROUTES_DOC = RouteDoc(
    "Ask for a way through a model for one generation; what it may use is reserved.",
    body=RouteRequest,
    answer=RouteGrant,
    errors=(
        ContextExceededError,
        ForbiddenError,
        ConflictError,
        ModelLoadingError,
        ModelUnavailableError,
        NotFoundError,
        OverloadedError,
        OverLimitError,
        QuotaExceededError,
    ),
)
MANIFEST_DOC = RouteDoc("Give the manifest of a model's revision.", answer=Download("application/json"))
SIGNATURE_DOC = RouteDoc(
    "Give the signature of a model's revision.", answer=Download("application/json"), errors=(NotFoundError,)
)
FILE_DOC = RouteDoc("Give a model's file, or a range of it.", answer=Download("application/octet-stream"))


def add_client_routes(app: web.Application) -> None:
    """Put the clients' routes in."""
    add_route(app, "open", "GET", "/v1/hello", hello, RouteDoc("Say who answers here.", answer=Hello))
    add_route(app, "open", "GET", "/v1/ca", ca, RouteDoc("Give the cluster CA's certificate.", answer=PEM))
    add_route(app, "client", "GET", "/v1/models", models, RouteDoc("List the models.", answer=ModelList))
    add_route(app, "client", "GET", "/v1/models/{name}", model, RouteDoc("Show a model.", answer=ModelInfo))
    add_route(app, "client", "POST", "/v1/routes", routes, ROUTES_DOC)
    add_route(app, "reader", "GET", "/v1/manifests/{revision}", manifest, MANIFEST_DOC)
    add_route(app, "reader", "GET", "/v1/manifests/{revision}/signature", signature, SIGNATURE_DOC)
    add_route(app, "reader", "GET", "/v1/files/{sha256}", file, FILE_DOC)


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
    return json_answer(ModelList(models=await request.app[MODELS_LOOK].get()))


async def model(request: web.Request) -> web.Response:
    """-> `ModelInfo`."""
    found = request.app[CATALOGUE].model(request.match_info["name"])
    return json_answer(model_info(request.app[CLUSTER].state, found.name, request.app[CLOCK]()))


def model_infos(
    state: ClusterState, now_s: float, n_missing_files: Callable[[ModelRecord], int]
) -> tuple[ModelInfo, ...]:
    """Every model as it stands: for a thread, as files are looked for, and what a large fleet lacks is."""
    return tuple(
        with_missing_files(model_info(state, name, now_s), n_missing_files(model))
        for name, model in state.models.items()
    )


def with_missing_files(info: ModelInfo, n_missing: int) -> ModelInfo:
    """The same, with what to do where the store lacks files of it."""
    if n_missing == 0:
        return info
    words = (
        f"the coordinator's store lacks {n_missing} of its files, which workers may need: "
        f"coord model add {info.name} SOURCE, from the source that it was made of"
    )
    return structs.replace(info, reason="; ".join(filter(None, (info.reason, words))), n_missing_files=n_missing)


async def manifest(request: web.Request) -> web.Response:
    """-> the manifest's bytes, which its revision is the hash of."""
    data = request.app[CATALOGUE].manifest_bytes(request.match_info["revision"])
    return web.Response(body=data, content_type="application/json")


async def signature(request: web.Request) -> web.Response:
    """-> the signature's bytes, as its author made them."""
    data = request.app[CATALOGUE].signature_bytes(request.match_info["revision"])
    return web.Response(body=data, content_type="application/json")


async def file(request: web.Request) -> web.StreamResponse:
    """-> the file's bytes, or the range of them that is asked for."""
    path = request.app[CATALOGUE].file_path(request.match_info["sha256"])
    return await file_answer(request, path)


async def routes(request: web.Request) -> web.Response:
    """`RouteRequest` -> `RouteGrant`: the generation is recorded, or there is no route."""
    wanted = await read_json(request, RouteRequest)
    caller = request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    with request.app[METRICS].route_asked(wanted):
        found = request.app[CATALOGUE].model(wanted.model)
        try:
            grant = await request.app[ROUTE_DESK].grant(
                found, wanted, caller.key_id, caller.limits, is_gone=lambda: request.transport is None
            )
        except StorageError as error:
            raise database_away(error) from error
    request.app[RUNNING].take(grant, wanted, caller.key_id, request.app[CLOCK]())
    return json_answer(grant)
