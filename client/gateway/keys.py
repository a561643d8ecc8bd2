"""What handlers find in the application, and the form in which each API says what is wrong, and what is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from client.gateway.body_room import BodyRoom
from client.gateway.clients import ClientPool
from client.gateway.config import GatewayConfig
from client.gateway.gate import Gate
from client.gateway.metrics import GatewayMetrics
from client.gateway.rates import RateHeaders
from protocol.errors import BrigadeError


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorShape:
    """How one API says that something is wrong, and what is left of a key's limits."""

    prefix: str
    """Of the paths that are answered so; the longest that fits counts."""
    body: Callable[[BrigadeError], bytes]
    status: Callable[[BrigadeError], int]
    rate_headers: RateHeaders


CONFIG = web.AppKey("config", GatewayConfig)
CLIENTS = web.AppKey("clients", ClientPool)
BODY_ROOM = web.AppKey("body_room", BodyRoom)
GATE = web.AppKey("gate", Gate)
METRICS = web.AppKey("metrics", GatewayMetrics)
NAMES = web.AppKey("names", frozenset[str])
ERROR_SHAPES = web.AppKey("error_shapes", list[ErrorShape])
REQUEST_ID = web.RequestKey("request_id", str)


def add_error_shape(app: web.Application, shape: ErrorShape) -> None:
    """Have errors under the shape's paths answered in it."""
    app[ERROR_SHAPES].append(shape)


def shape_for(request: web.Request) -> ErrorShape:
    """The shape of errors at the path that is asked for."""
    fitting = [shape for shape in request.app[ERROR_SHAPES] if request.path.startswith(shape.prefix)]
    return max(fitting, key=lambda shape: len(shape.prefix))
