"""Models without weights: their files are random bytes."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

from coordinator.file_store import FileStore
from protocol.cluster_rest import AddModelRequest
from protocol.ids import ModelName, Revision
from protocol.manifest import FORMAT_VERSION, Manifest, ModelFile, encode_manifest, revision_of
from tests.support.coordinators import RunningCoordinator, http_session, key_of


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """A model whose files are random bytes, in a coordinator's store."""

    manifest: Manifest
    manifest_bytes: bytes
    revision: Revision
    contents: dict[str, bytes]
    """By hash."""


def stored_model(store: FileStore, *, n_blocks: int = 4, context_length: int = 128) -> StoredModel:
    """Put a model into the store; each is another one. Blocks (for milliseconds)."""
    contents: dict[str, bytes] = {}

    def file(name: str, n_bytes: int, n_parameters: int = 0) -> ModelFile:
        data = secrets.token_bytes(n_bytes)
        stored = store.put(data)
        contents[stored.sha256] = data
        return ModelFile(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes, n_parameters=n_parameters)

    manifest = Manifest(
        format_version=FORMAT_VERSION,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=16,
        vocab_size=64,
        context_length=context_length,
        kv_elements_per_token=32,
        weights_dtype="float32",
        is_chat=False,
        blocks=tuple(file(f"block-{i}.safetensors", 400, 100) for i in range(n_blocks)),
        before=(file("embedding.safetensors", 300, 75),),
        after=(file("after.safetensors", 200, 50),),
        auxiliary=(file("config.json", 100),),
    )
    data = encode_manifest(manifest)
    store.put(data)
    return StoredModel(manifest=manifest, manifest_bytes=data, revision=revision_of(data), contents=contents)


async def add_model(coordinator: RunningCoordinator, name: str = "tiny", **shape: int) -> StoredModel:
    """Store a model and have the coordinator serve it, over the admin API."""
    model = await asyncio.to_thread(lambda: stored_model(FileStore(coordinator.state_folder.files), **shape))
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        request = AddModelRequest(name=ModelName(name), revision=model.revision)
        answer = await http.ask("POST", "/admin/v1/models", request)
        assert answer.status == 201, answer.body
    return model
