"""Class 20. Defences: files go by hash, names are checked, links stay inside, redirects aren't followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.api_key import api_key_from_text
from protocol.cluster_rest import AddModelRequest
from protocol.errors import BrigadeError, UnreachableError, UntrustedFileError
from protocol.ids import FileHash, ModelName, Revision
from protocol.manifest import Manifest, ModelFile, decode_manifest, encode_manifest, revision_of
from protocol.pinned_http import pinned_session
from protocol.rest import ModelList
from protocol.tls import COORDINATOR_NAME, client_context, server_context
from tests.coordinator.packing_support import llama_tensors, no_progress, write_model, write_safetensors
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.stored_model import add_model, stored_model

SECRET = "what is outside"
BAD_NAMES = ("../model", "a/b", "..", ".", "", "a\0b", "/etc/passwd", "a\\b", "a" * 65, "x.", "%2e%2e", "C:x")


async def raw_get(coordinator: RunningCoordinator, path: str, key: str) -> bytes:
    """The answer to exactly this path; libraries tidy it up before it is sent."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        coordinator.port,
        ssl=client_context(coordinator.authority.ca_pem),
        server_hostname=COORDINATOR_NAME,
    )
    lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{coordinator.port}", f"Authorization: Bearer {key}")
    writer.write("\r\n".join((*lines, "Connection: close", "", "")).encode())
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


async def test_no_path_leads_out_of_the_models_files(tmp_path: Path) -> None:
    """Fails if a request's path makes a path on disk in any other way than by a served file's hash."""
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        unserved = stored_model(FileStore(coordinator.state_folder.files))
        key = key_of(coordinator, "client")
        inside = model.manifest.blocks[0].sha256
        assert (await raw_get(coordinator, f"/v1/files/{inside}", key)).startswith(b"HTTP/1.1 200")
        for name in (
            "../admin.key",
            "..%2fadmin.key",
            "..%2f..%2fadmin.key",
            "%2e%2e/%2e%2e/admin.key",
            "....//....//admin.key",
            f"{inside}/../../../admin.key",
            f"{inside}%00.txt",
            f"%2fetc%2fpasswd{'a' * 40}",
            str(coordinator.state_folder.path("admin.key")),
            f"{inside[:2]}/{inside}",
            unserved.manifest.blocks[0].sha256,
        ):
            for route in ("files", "manifests"):
                answer = await raw_get(coordinator, f"/v1/{route}/{name}", key)
                assert answer.split(b" ", 2)[1] in (b"400", b"404"), (route, name, answer)
                assert b"brigade-admin" not in answer
                assert b"root:" not in answer


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_a_models_name_is_no_path(tmp_path: Path, name: str) -> None:
    """Fails without `checked_model_name` on the admin API."""
    async with running_coordinator(tmp_path) as coordinator:
        model = stored_model(FileStore(coordinator.state_folder.files))
        async with http_session(coordinator, key_of(coordinator, "admin")) as http:
            request = AddModelRequest(name=ModelName(name), revision=model.revision)
            assert (await http.ask("POST", "/admin/v1/models", request)).status == 400


@pytest.mark.parametrize("revision", ["../../admin.key", "..", "a" * 63, "A" * 64, "/etc/passwd"])
async def test_a_revision_is_no_path(tmp_path: Path, revision: str) -> None:
    """Fails if the store opens anything but hashes."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
    ):
        request = AddModelRequest(name=ModelName("x"), revision=Revision(revision))
        assert (await http.ask("POST", "/admin/v1/models", request)).status == 404


def manifest_with(name: str, folder: Path) -> bytes:
    """A manifest whose config is called `name`; not made by our classes, which refuse it."""
    good = stored_model(FileStore(folder)).manifest
    fields = json.loads(encode_manifest(good))
    fields["auxiliary"][0]["name"] = name
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()


@pytest.mark.parametrize("name", ["../config.json", "/etc/cron.d/x", "a/b.json", "..", ".hidden", "a\0b", "~/x"])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    """Fails if names in a manifest aren't checked: a worker links its config files under them."""
    fine = manifest_with("config.json", tmp_path / "store")
    assert isinstance(decode_manifest(fine, expected=revision_of(fine)), Manifest)
    data = manifest_with(name, tmp_path / "store")
    with pytest.raises(UntrustedFileError):
        decode_manifest(data, expected=revision_of(data))
    with pytest.raises(ValueError, match="name"):
        ModelFile(name=name, sha256=FileHash("a" * 64), size_bytes=1)


def indexed_model(folder: Path, file_name: str) -> Path:
    """A sharded model whose index looks for its weights in `file_name`."""
    write_model(folder)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(llama_tensors(), file_name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_an_index_that_stays_inside_is_taken(tmp_path: Path) -> None:
    """The counterpart of what follows."""
    folder = indexed_model(tmp_path / "model", "shard.safetensors")
    write_safetensors(folder / "shard.safetensors", llama_tensors())
    pack_model(str(folder), FileStore(tmp_path / "store"), no_progress)


@pytest.mark.parametrize("how", ["../outside.safetensors", "absolute", "link", "linked folder"])
def test_an_index_cannot_point_outside_its_folder(tmp_path: Path, how: str) -> None:
    """Fails if file names of an index, or links, are followed wherever they lead: the file is there and is good."""
    outside = tmp_path / "outside.safetensors"
    write_safetensors(outside, llama_tensors())
    name = {"absolute": str(outside), "link": "shard.safetensors", "linked folder": "up/outside.safetensors"}
    folder = indexed_model(tmp_path / "model", name.get(how, how))
    (folder / "shard.safetensors").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    store = FileStore(tmp_path / "store")
    with pytest.raises(BrigadeError):
        pack_model(str(folder), store, no_progress)
    assert store.hashes() == ()


def test_a_linked_config_shows_nothing_from_outside(tmp_path: Path) -> None:
    """Fails if auxiliary files may be links: a key would be packed, and served to every client."""
    folder = write_model(tmp_path / "model")
    (tmp_path / "admin.key").write_text(json.dumps({"x": SECRET}))
    for name in ("generation_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"):
        (folder / name).symlink_to(tmp_path / "admin.key")
    store = FileStore(tmp_path / "store")
    with suppress(BrigadeError):
        pack_model(str(folder), store, no_progress)
    assert not [sha256 for sha256 in store.hashes() if SECRET.encode() in store.path(sha256).read_bytes()]


@asynccontextmanager
async def redirecting(coordinator: RunningCoordinator, target: str) -> AsyncIterator[str]:
    """Whoever has the coordinator's certificate and sends callers elsewhere."""

    async def answer(request: web.Request) -> web.Response:
        if request.path == "/v1/ca":
            return web.Response(text=coordinator.authority.ca_pem)
        raise web.HTTPTemporaryRedirect(target + request.path)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    async with listening(coordinator, app) as url:
        yield url


@asynccontextmanager
async def listening(coordinator: RunningCoordinator, app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    state = coordinator.state_folder
    context = server_context(state.path("server.pem"), state.path("server.key"))
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_credentials_do_not_follow_redirects(tmp_path: Path) -> None:
    """Fails without `allow_redirects=False`: the target would be sent the API key."""
    seen: list[str | None] = []

    async def take(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(text="{}")

    target = web.Application()
    target.router.add_route("*", "/{path:.*}", take)
    async with (
        running_coordinator(tmp_path) as coordinator,
        listening(coordinator, target) as elsewhere,
        redirecting(coordinator, elsewhere) as url,
    ):
        with pytest.raises(UnreachableError, match="307"):
            async with pinned_session(url, api_key_from_text(key_of(coordinator, "client"))) as session:
                await session.get("/v1/models", ModelList)
    assert seen == []
