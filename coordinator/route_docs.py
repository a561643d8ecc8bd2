"""What a route takes and answers, and how it fails: described once, where its handler is put in.

From these descriptions `coordinator.openapi` is made, and by them the surroundings of a handler act: query
parameters are refused where there are none, a resource's ETag is checked and shown. One line is enough:

    add_route(app, "admin", "GET", "/admin/v1/things/{name}", thing, RouteDoc("Show a thing.", answer=ThingInfo))
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass

import msgspec
from aiohttp import web

from protocol.errors import BrigadeError


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that several operators may change: who changes it may say in which state they found it."""

    name: Callable[[web.Request], str]
    """Which one the request is about. Changes of one are made one after the other."""
    view: Callable[[web.Request], Awaitable[msgspec.Struct]]
    """All of it that operators change, and nothing that changes by itself: its ETag is made of this."""


@dataclass(frozen=True, slots=True)
class Download:
    """An answer that isn't JSON of ours: its media type."""

    media_type: str


@dataclass(frozen=True, slots=True)
class RouteDoc:
    """One route, described."""

    summary: str
    """A sentence that says what it does."""
    _: KW_ONLY
    answer: type[msgspec.Struct] | Download | None
    """What comes back; None: an answer without a body."""
    status: int = 200
    """Of the answer, if all goes well."""
    body: type[msgspec.Struct] | None = None
    """What has to be sent; None: nothing."""
    query: type[msgspec.Struct] | None = None
    """Its fields are the query parameters; None: there are none, and any is refused."""
    errors: tuple[type[BrigadeError], ...] = ()
    """How it fails beyond what every route of its kind can (`coordinator.openapi`)."""
    resource: Resource | None = None
    """What it shows (GET) or changes, if that has an ETag."""
