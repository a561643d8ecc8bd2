"""Lists in pages: a cursor says after which entry to go on, so that nothing is skipped when others come or go.

A cursor is signed, and good for the list and the filters that it was given out for: what it says is believed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from itsdangerous import BadData, URLSafeSerializer

from coordinator.keys import AUTHORITY
from protocol.admin_rest import PageQuery
from protocol.errors import InvalidRequestError

T = TypeVar("T")
Position = tuple[int | float | str, ...]
"""Where an entry stands in its list; lists are in this order, and no two entries have the same."""

SALT = "page-cursor"


def page(
    request: web.Request, query: PageQuery, entries: Iterable[T], position: Callable[[T], Position]
) -> tuple[tuple[T, ...], str | None]:
    """The entries of the page that is asked for, and the cursor of the next; None if this is the last.

    Raises:
        InvalidRequestError: the cursor is none of this list.
    """
    after = read_cursor(request, query)
    rest = [entry for entry in sorted(entries, key=position) if after is None or position(entry) > after]
    return page_of(request, query, rest, position)


def page_of(
    request: web.Request, query: PageQuery, rest: Sequence[T], position: Callable[[T], Position]
) -> tuple[tuple[T, ...], str | None]:
    """The same of entries in order, from where the page begins: one more than it has, if there are more."""
    shown = tuple(rest[: query.limit])
    return shown, cursor_after(request, query, position(shown[-1])) if len(rest) > len(shown) else None


def read_cursor(request: web.Request, query: PageQuery) -> Position | None:
    """After which entry the page begins; None: with the first.

    Raises:
        InvalidRequestError: the cursor is damaged, or of another list or other filters.
    """
    if not query.cursor:
        return None
    try:
        scope, place = _serializer(request).loads(query.cursor)
    except (BadData, ValueError, TypeError) as exc:
        raise InvalidRequestError(
            "the cursor is damaged, or too old: leave it out to begin with the first page"
        ) from exc
    if scope != _scope(request, query):
        raise InvalidRequestError(
            "the cursor is of another list, or of other filters: give the parameters of the page that it came "
            "with, or leave it out to begin with the first page"
        )
    return tuple(place)


def cursor_after(request: web.Request, query: PageQuery, place: Position) -> str:
    """The cursor of the page that begins after this entry."""
    return str(_serializer(request).dumps([_scope(request, query), place]))


def _serializer(request: web.Request) -> URLSafeSerializer:
    return URLSafeSerializer(list(request.app[AUTHORITY].signing_keys), salt=SALT)


def _scope(request: web.Request, query: PageQuery) -> list[Any]:
    filters = msgspec.to_builtins(query)
    return [request.path, {name: value for name, value in filters.items() if name not in ("limit", "cursor")}]
