"""Ollama's requests about models, and for vectors; and those that only an operator of the cluster can carry out."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from client.api import Client
from client.gateway.asking import asking_client, embedded, found_model
from client.gateway.bodies import ApiBody, json_answer, read_json
from client.gateway.faults import FieldError
from client.gateway.ollama_answer import timestamp
from client.gateway.openai_embeddings import MAX_INPUTS
from client.gateway.openai_fields import TextInput, listed_inputs
from protocol.errors import ForbiddenError
from protocol.rest import ModelInfo
from protocol.version import program_version

_TAG = ":latest"
"""What Ollama's clients may put behind a name."""


class ShowRequest(ApiBody, frozen=True, kw_only=True):
    """`POST /api/show`."""

    model: str | None = None
    name: str | None = None
    """The older name of the same."""
    verbose: bool | None = None


class EmbedRequest(ApiBody, frozen=True, kw_only=True):
    """`POST /api/embed`."""

    model: str
    input: TextInput
    truncate: bool | None = None
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


class EmbeddingsRequest(ApiBody, frozen=True, kw_only=True):
    """`POST /api/embeddings`, the older form."""

    model: str
    prompt: str
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None


async def named_model(client: Client, name: str) -> ModelInfo:
    """The model of this name, with or without Ollama's tag. ModelNotFoundError: there is none."""
    return await found_model(client, name.removesuffix(_TAG))


async def here(_request: web.Request) -> web.Response:
    """`GET /`, open to anybody: that there is a gateway."""
    return web.Response(text="Brigade is running")


async def version(request: web.Request) -> web.Response:
    """`GET /api/version`."""
    async with asking_client(request):
        return json_answer({"version": program_version()})


async def tags(request: web.Request) -> web.Response:
    """`GET /api/tags`: all models."""
    async with asking_client(request) as client:
        return json_answer({"models": [_shown(model) for model in await client.models()]})


async def running_models(request: web.Request) -> web.Response:
    """`GET /api/ps`: those that can be used now."""
    async with asking_client(request) as client:
        ready = [model for model in await client.models() if model.state == "ready"]
    shown = [
        _shown(model) | {"expires_at": _FOREVER, "size_vram": 0, "context_length": model.context_length}
        for model in ready
    ]
    return json_answer({"models": shown})


async def show(request: web.Request) -> web.Response:
    """`POST /api/show`: one model."""
    body = await read_json(request, ShowRequest, types=None)
    name = body.model or body.name
    if not name:
        raise FieldError("model is required", param="model")
    async with asking_client(request) as client:
        model = await named_model(client, name)
        template = (await client.tokenizer(model.revision)).tool_template
    family = model.architecture.lower()
    info = {
        "general.architecture": family,
        f"{family}.context_length": model.context_length,
        f"{family}.block_count": model.n_blocks,
    }
    can = ["completion", *(["tools"] if template is not None else [])]
    answer = {
        "modelfile": "",
        "parameters": "",
        "template": "" if template is None else template.source,
        "details": _details(model),
        "model_info": info,
        "capabilities": can if model.kind == "decoder" else ["embedding"],
        "modified_at": timestamp(),
    }
    return json_answer(answer)


async def embed(request: web.Request) -> web.Response:
    """`POST /api/embed`: texts as vectors."""
    body = await read_json(request, EmbedRequest, types=None)
    inputs = listed_inputs(body.input, param="input", max_inputs=MAX_INPUTS)
    async with asking_client(request) as client:
        model = await named_model(client, body.model)
        found = await embedded(
            request, client, model, inputs, dimensions=body.dimensions, truncate=body.truncate is not False
        )
    vectors = [[float(number) for number in vector] for vector in found.vectors]
    return json_answer({"model": body.model, "embeddings": vectors, "prompt_eval_count": found.n_tokens})


async def embeddings(request: web.Request) -> web.Response:
    """`POST /api/embeddings`: one text as a vector, of whatever length it comes out."""
    body = await read_json(request, EmbeddingsRequest, types=None)
    async with asking_client(request) as client:
        model = await named_model(client, body.model)
        found = await embedded(request, client, model, [body.prompt], normalize=False, truncate=True)
    return json_answer({"embedding": [float(number) for number in found.vectors[0]]})


async def refused(request: web.Request) -> web.Response:
    """What changes which models there are: not for who holds an API key."""
    raise ForbiddenError(
        f"{request.path[:100]} isn't possible here: which models the cluster has is up to its operators, who add "
        "one by `coord model add NAME SOURCE`"
    )


_FOREVER = "9999-12-31T23:59:59Z"


def _shown(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(),
        "size": model.size_bytes,
        "digest": model.revision,
        "details": _details(model),
    }


def _details(model: ModelInfo) -> dict[str, Any]:
    family = model.architecture.lower()
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": family,
        "families": [family],
        "parameter_size": "",
        "quantization_level": "",
    }
