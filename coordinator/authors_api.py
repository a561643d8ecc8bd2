"""What operators ask about authors of models: whom they trust, and whom from now on or no longer."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import web

from coordinator.credentials import KeyCaller
from coordinator.keys import CALLER, CLOCK, CLUSTER, TURNS
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.authors import Author
from coordinator.policy.events import AuthorAdded, AuthorRemoved
from coordinator.policy.state import ClusterState
from coordinator.route_docs import RouteDoc
from protocol.author_rest import AddAuthorRequest, AuthorInfo, AuthorList
from protocol.error_forms import repeated
from protocol.errors import ConflictError, NotFoundError, OverloadedError

MAX_AUTHORS = 1000
"""Far more than anybody can know; all of them are in the state."""

LIST_DOC = RouteDoc("List the authors of models who are trusted.", answer=AuthorList)
ADD_DOC = RouteDoc(
    "Trust an author: models signed with this key may be served where models must be signed.",
    body=AddAuthorRequest,
    answer=AuthorInfo,
    status=201,
    errors=(ConflictError, OverloadedError),
)
REMOVE_DOC = RouteDoc(
    "Trust an author no longer. Where models must be signed, no new generations begin with his.",
    answer=AuthorInfo,
    errors=(NotFoundError,),
)


def add_author_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "admin", "GET", "/admin/v1/authors", authors, LIST_DOC)
    add_route(app, "admin", "POST", "/admin/v1/authors", add_author, ADD_DOC)
    add_route(app, "admin", "DELETE", "/admin/v1/authors/{key}", remove_author, REMOVE_DOC)


async def authors(request: web.Request) -> web.Response:
    """-> `AuthorList`."""
    state = request.app[CLUSTER].state
    return json_answer(AuthorList(authors=tuple(_info(state, author) for author in state.authors.values())))


async def add_author(request: web.Request) -> web.Response:
    """`AddAuthorRequest` -> `AuthorInfo`."""
    wanted = await read_json(request, AddAuthorRequest)
    cluster, caller = request.app[CLUSTER], request[CALLER]
    assert isinstance(caller, KeyCaller)  # the route's access says so
    author = Author(key=wanted.key, name=wanted.name, added_s=request.app[CLOCK](), added_by=caller.key_id)
    async with request.app[TURNS].of("authors"):
        _check_is_new(cluster.state, wanted)
        await cluster.handle(AuthorAdded(author=author))
    return json_answer(_info(cluster.state, author), status=201)


async def remove_author(request: web.Request) -> web.Response:
    """-> `AuthorInfo`, as the author was."""
    cluster, given = request.app[CLUSTER], request.match_info["key"]
    found = next((author for author in cluster.state.authors.values() if author.key == given), None)
    if found is None:
        raise NotFoundError(f"no trusted author has the key {repeated(given)}; `coord author list` shows them")
    info = _info(cluster.state, found)
    await cluster.handle(AuthorRemoved(key=found.key))
    return json_answer(info)


def _check_is_new(state: ClusterState, wanted: AddAuthorRequest) -> None:
    """One name stands for one key, so that nobody is taken for another."""
    for author in state.authors.values():
        if author.key == wanted.key or author.name.casefold() == wanted.name.casefold():
            raise ConflictError(
                f"{author.name} is a trusted author already, with the key {author.key}; `coord author remove` him "
                "first, or choose another name"
            )
    if len(state.authors) >= MAX_AUTHORS:
        raise ConflictError(f"{MAX_AUTHORS} authors are trusted already, the most there can be; remove some")


def _info(state: ClusterState, author: Author) -> AuthorInfo:
    return AuthorInfo(
        key=author.key,
        name=author.name,
        added_at=datetime.fromtimestamp(author.added_s, UTC).isoformat(timespec="seconds"),
        added_by=author.added_by,
        models=tuple(
            model.name
            for model in state.models.values()
            if model.signature is not None and model.signature.statement.key == author.key
        ),
    )
