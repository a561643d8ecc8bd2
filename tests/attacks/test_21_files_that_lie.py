"""Class 21. Defences: headers are checked against the file's size, bytes against their hash, on every machine."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch
from aiohttp import web

from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from protocol.errors import BrigadeError, UntrustedFileError
from protocol.tls import client_context, server_context, worker_name
from tests.coordinator.gguf_support import write_gguf
from tests.coordinator.packing_support import no_progress, write_model
from tests.support.coordinators import running_coordinator
from tests.support.pki import TestAuthority
from tests.support.raw_socket import resident_bytes
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.waiting import eventually
from worker.downloads import Downloader, FileSource
from worker.engine import Engine
from worker.files import FileCache

Checkpoints = Callable[[str], TinyCheckpoint]
ALLOWED_GROWTH_BYTES = 150 * 2**20
UP = "model.layers.0.mlp.up_proj.weight"


def relabelled(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a safetensors file's header, whatever that does to its truth."""
    data = path.read_bytes()
    (n_header,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + n_header])
    change(header)
    text = json.dumps(header).encode()
    path.chmod(0o600)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + n_header :])


SAFETENSORS_LIES: dict[str, Callable[[dict[str, Any]], None]] = {
    "beyond the end": lambda h: h[UP].update(data_offsets=[0, 2**40]),
    "a negative offset": lambda h: h[UP].update(data_offsets=[-64, 0]),
    "backwards": lambda h: h[UP].update(data_offsets=[64, 0]),
    "a shape that overflows": lambda h: h[UP].update(shape=[2**32, 2**32, 2**32]),
    "a shape that isn't its bytes": lambda h: h[UP].update(shape=[8, 5]),
    "a size of zero": lambda h: h[UP].update(shape=[0, 4]),
    "a negative size": lambda h: h[UP].update(shape=[-8, -4]),
    "an overlap": lambda h: h[UP].update(data_offsets=h["lm_head.weight"]["data_offsets"]),
    "another dtype": lambda h: h[UP].update(dtype="F64"),
}


@pytest.mark.parametrize("lie", SAFETENSORS_LIES)
def test_a_safetensors_header_that_lies_is_refused_and_leaves_nothing(tmp_path: Path, lie: str) -> None:
    """Fails if the header is believed."""
    folder = write_model(tmp_path / "model")
    relabelled(folder / "model.safetensors", SAFETENSORS_LIES[lie])
    store, before = FileStore(tmp_path / "store"), resident_bytes()
    with pytest.raises(UntrustedFileError):
        pack_model(str(folder), store, no_progress)
    assert store.hashes() == ()
    assert resident_bytes() - before < ALLOWED_GROWTH_BYTES


@pytest.mark.parametrize("n_header", [2**63, 2**40, 10**8, 0, 1])
def test_a_safetensors_header_length_that_lies_is_refused(tmp_path: Path, n_header: int) -> None:
    """Fails if as much is read as the file says."""
    folder = write_model(tmp_path / "model")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", n_header) + data[8:])
    store, before = FileStore(tmp_path / "store"), resident_bytes()
    with pytest.raises(UntrustedFileError):
        pack_model(str(folder), store, no_progress)
    assert store.hashes() == ()
    assert resident_bytes() - before < ALLOWED_GROWTH_BYTES


@pytest.mark.parametrize("n_cut", [1, 64, 300])
def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, n_cut: int) -> None:
    """Fails if missing bytes are zeros."""
    folder = write_model(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-n_cut])
    store = FileStore(tmp_path / "store")
    with pytest.raises(UntrustedFileError):
        pack_model(str(folder), store, no_progress)
    assert store.hashes() == ()


GGUF_LIES: dict[str, Callable[[bytes], bytes]] = {
    "tensors without number": lambda data: data[:8] + struct.pack("<Q", 2**63) + data[16:],
    "settings without number": lambda data: data[:16] + struct.pack("<Q", 2**63) + data[24:],
    "a name without end": lambda data: data[:24] + struct.pack("<Q", 2**62) + data[32:],
    "another version": lambda data: data[:4] + struct.pack("<I", 77) + data[8:],
    "cut in its header": lambda data: data[:100],
    "cut in its weights": lambda data: data[:-1000],
    "no GGUF": lambda data: b"GGML" + data[4:],
    "a vocabulary without end": lambda data: _array_length(data, b"tokenizer.ggml.tokens", 2**60),
    "a tensor beyond its end": lambda data: _tensor_offset(data, b"output_norm.weight", 2**50),
}


def _array_length(data: bytes, key: bytes, n: int) -> bytes:
    at = data.index(key) + len(key) + 4 + 4  # kind: array, kind of its items
    return data[:at] + struct.pack("<Q", n) + data[at + 8 :]


def _tensor_offset(data: bytes, name: bytes, offset: int) -> bytes:
    at = data.index(name) + len(name)
    (n_dimensions,) = struct.unpack_from("<I", data, at)
    at += 4 + 8 * n_dimensions + 4  # sizes, encoding
    return data[:at] + struct.pack("<Q", offset) + data[at + 8 :]


@pytest.mark.parametrize("lie", GGUF_LIES)
def test_a_gguf_file_that_lies_is_refused_and_leaves_nothing(tmp_path: Path, lie: str) -> None:
    """Fails if counts, lengths and offsets of a GGUF header reach a reader that believes them."""
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(GGUF_LIES[lie](path.read_bytes()))
    store, before = FileStore(tmp_path / "store"), resident_bytes()
    with pytest.raises(BrigadeError) as caught:
        pack_model(str(path), store, no_progress)
    assert caught.value.status < 500, caught.value
    assert store.hashes() == ()
    assert resident_bytes() - before < ALLOWED_GROWTH_BYTES


@pytest.mark.parametrize("lie", ["beyond the end", "a shape that isn't its bytes", "cut"])
async def test_a_worker_refuses_weights_that_lie_though_their_hash_is_right(
    checkpoint: Checkpoints, tmp_path: Path, lie: str
) -> None:
    """Fails if a hash of the manifest is taken for a promise of sense: its author may lie. The engine lives."""
    llama = checkpoint("llama")
    request = llama.request(WHOLE)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(request.files[0].read_bytes())
    if lie == "cut":
        bad.write_bytes(bad.read_bytes()[:-100])
    else:
        changes = {"beyond the end": {"data_offsets": [0, 2**40]}}.get(lie, {"shape": [3, 3]})
        relabelled(bad, lambda h: next(v for k, v in sorted(h.items()) if k != "__metadata__").update(changes))
    lying = type(request)(key=request.key, config_folder=request.config_folder, files=(bad, *request.files[1:]))
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=2**20, n_threads=1) as engine:
        with pytest.raises(UntrustedFileError):
            await engine.load(lying)
        assert (await engine.load(request)).n_weight_bytes > 0


async def test_a_peer_that_sends_other_bytes_gets_nothing_into_the_cache(tmp_path: Path) -> None:
    """Fails if downloads aren't hashed: the peer has a good certificate, size and headers."""
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        file = model.manifest.blocks[0]
        authority = TestAuthority()
        peer = authority.worker(tmp_path)

        async def poisoned(_request: web.Request) -> web.Response:
            data = bytearray(model.contents[file.sha256])
            data[len(data) // 2] ^= 1
            return web.Response(body=bytes(data))

        app = web.Application()
        app.router.add_get("/v1/files/{name}", poisoned)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        context = server_context(peer.certificate, peer.key)
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        source = FileSource(
            name="peer",
            url=f"https://127.0.0.1:{runner.addresses[0][1]}",
            context=client_context(authority.ca_pem),
            server_hostname=worker_name(peer.worker_id),
        )
        cache = FileCache(tmp_path / "cache")
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            with pytest.raises(BrigadeError, match="other bytes"):
                await Downloader(session, cache, lambda: 1.0).fetch(file, [source], lambda *_: None)
        await runner.cleanup()
        assert cache.hashes() == ()
        assert not cache.find(file.sha256)


async def test_a_file_swapped_after_its_check_is_checked_again(tmp_path: Path) -> None:
    """Fails if a file counts as checked for ever: it is swapped for another of the same size, and for a link."""
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
    file = model.manifest.blocks[0]
    data = model.contents[file.sha256]
    cache = FileCache(tmp_path / "cache")
    for how in ("rewritten", "replaced", "linked"):
        path = cache.put(file.sha256, data, 1.0)
        assert cache.find(file.sha256)
        other = tmp_path / f"other-{how}"
        other.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        if how == "rewritten":
            path.chmod(0o600)
            path.write_bytes(other.read_bytes())
        elif how == "replaced":
            other.replace(path)
        else:
            path.unlink()
            path.symlink_to(other)
        assert not await asyncio.to_thread(cache.find, file.sha256), how
    await eventually(lambda: cache.hashes() == ())
