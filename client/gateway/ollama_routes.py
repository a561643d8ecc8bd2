"""Where Ollama's clients find what they ask for."""

from __future__ import annotations

from aiohttp import web

from client.gateway import ollama_chat, ollama_models
from client.gateway.keys import add_error_shape
from client.gateway.ollama_errors import OLLAMA_SHAPE, PREFIX


def add_routes(app: web.Application) -> None:
    """Have the application answer Ollama's clients."""
    add_error_shape(app, OLLAMA_SHAPE)
    app.router.add_get("/", ollama_models.here)  # HEAD too, by which Ollama's own program looks who is there
    app.router.add_post("/api/chat", ollama_chat.chat)
    app.router.add_post("/api/generate", ollama_chat.generate)
    app.router.add_get("/api/tags", ollama_models.tags)
    app.router.add_get("/api/ps", ollama_models.running_models)
    app.router.add_get("/api/version", ollama_models.version)
    app.router.add_post("/api/show", ollama_models.show)
    app.router.add_post("/api/embed", ollama_models.embed)
    app.router.add_post("/api/embeddings", ollama_models.embeddings)
    for name in ("pull", "push", "create", "copy"):
        app.router.add_post(PREFIX + name, ollama_models.refused)
    app.router.add_delete("/api/delete", ollama_models.refused)
    app.router.add_route("*", "/api/blobs/{digest}", ollama_models.refused)
