"""`/v1/models` and `/v1/models/{name}`: which models the cluster has."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from client.gateway.asking import asking_client, found_model
from client.gateway.bodies import json_answer
from protocol.rest import ModelInfo


async def models(request: web.Request) -> web.Response:
    """`GET /v1/models`: all of them, those that can't be used just now too."""
    async with asking_client(request) as client:
        return json_answer({"object": "list", "data": [_shown(model) for model in await client.models()]})


async def model(request: web.Request) -> web.Response:
    """`GET /v1/models/{name}`."""
    async with asking_client(request) as client:
        return json_answer(_shown(await found_model(client, request.match_info["name"])))


def _shown(info: ModelInfo) -> dict[str, Any]:
    return {
        "id": info.name,
        "object": "model",
        "created": 0,  # the cluster doesn't say when a model was added
        "owned_by": "brigade",
        "max_model_len": info.context_length,
        "state": info.state,
    }
