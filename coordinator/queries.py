"""Query parameters of a request as a struct, checked by msgspec; what is wrong is said by the parameter's name."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from aiohttp import web

from protocol.error_forms import repeated
from protocol.errors import InvalidRequestError

T = TypeVar("T", bound=msgspec.Struct)

_AT = re.compile(r" - at `\$\.(\w+)`$")
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)


def read_query(request: web.Request, kind: type[T]) -> T:
    """The query parameters as a `kind`.

    Raises:
        InvalidRequestError: one is unknown, given twice, or has a value that it can't have; names it.
    """
    given = request.query
    twice = next((name for name in given if len(given.getall(name)) > 1), None)
    if twice is not None:
        raise InvalidRequestError(
            f"the query parameter {repeated(twice)} is given {len(given.getall(twice))} times"
        )
    if any("\x00" in value for value in given.values()):
        raise InvalidRequestError("a query parameter has a NUL character in it; leave it out")
    try:
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as exc:
        raise _refusal(kind, str(exc)) from exc


def _refusal(kind: type[msgspec.Struct], reason: str) -> InvalidRequestError:
    known = ", ".join(kind.__struct_encode_fields__) or "none"
    unknown, at = _UNKNOWN.search(reason), _AT.search(reason)
    if unknown is not None:
        return InvalidRequestError(f"there is no query parameter {repeated(unknown[1])} here; there are: {known}")
    name = at[1] if at is not None else "?"
    example = "; a time is written as 2026-11-01T00:00:00Z" if "datetime" in reason else ""
    return InvalidRequestError(f"the query parameter {name} can't be used: {_AT.sub('', reason)}{example}")
