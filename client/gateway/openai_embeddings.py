"""`/v1/embeddings`: texts as vectors."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Literal

import msgspec
from aiohttp import web

from client.gateway.asking import asking_client, embedded, found_model
from client.gateway.bodies import ApiBody, json_answer, json_bytes, read_json
from client.gateway.openai_fields import TextInput, listed_inputs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
        found = await embedded(
            request,
            client,
            model,
            inputs,
            pooling=body.pooling,
            normalize=body.normalize,
            dimensions=body.dimensions,
        )
    data = await asyncio.to_thread(_entries, found.vectors, is_base64=body.encoding_format == "base64")
    usage = {"prompt_tokens": found.n_tokens, "total_tokens": found.n_tokens}
    return json_answer({"object": "list", "data": data, "model": model.name, "usage": usage})


def _entries(vectors: NDArray[np.float32], *, is_base64: bool) -> list[msgspec.Raw]:
    """The answer's list, each entry encoded by itself: all at once would hold up every other answer.

    Base64 is of little-endian float32, which OpenAI's own clients ask for.
    """
    return [
        msgspec.Raw(
            json_bytes(
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": base64.b64encode(vector.astype("<f4").tobytes()).decode()
                    if is_base64
                    else vector.tolist(),
                }
            )
        )
        for index, vector in enumerate(vectors)
    ]
