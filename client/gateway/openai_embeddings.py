"""`/v1/embeddings`: texts as vectors."""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

from aiohttp import web

from client.gateway.asking import asking_client, found_model
from client.gateway.bodies import ApiBody, json_answer, read_json
from client.gateway.keys import CONFIG
from client.gateway.openai_fields import TextInput, listed_inputs

MAX_INPUTS = 2048


class EmbeddingRequest(ApiBody, frozen=True, kw_only=True):
    """`POST /v1/embeddings`; `pooling` and `normalize` are ours."""

    model: str
    input: TextInput
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["auto", "mean", "last", "cls"] = "auto"
    normalize: bool = True


async def embeddings(request: web.Request) -> web.Response:
    """`POST /v1/embeddings`."""
    body = await read_json(request, EmbeddingRequest)
    inputs = listed_inputs(body.input, param="input", max_inputs=MAX_INPUTS)
    async with asking_client(request) as client:
        model = await found_model(client, body.model)
        found = await client.embed(
            model,
            inputs,
            pooling=body.pooling,
            normalize=body.normalize,
            dimensions=body.dimensions,
            timeout_s=request.app[CONFIG].timeout_s,
        )
    encoded = _base64 if body.encoding_format == "base64" else _numbers
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(vector)}
        for index, vector in enumerate(found.vectors)
    ]
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    return json_answer({"object": "list", "data": data, "model": model.name, "usage": usage})


def _base64(vector: Any) -> str:
    """As little-endian float32, which OpenAI's own clients ask for."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _numbers(vector: Any) -> list[float]:
    return [float(number) for number in vector]
