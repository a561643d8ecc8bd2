"""What a source names, and what is said when the Hub can't give it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from coordinator.packing.sources import FolderSource, GgufFileSource, HubSource, parse_source
from protocol.errors import InvalidRequestError, NotFoundError
from tests.coordinator.packing_support import write_model

PACK = (
    "import sys; from pathlib import Path; from coordinator.file_store import FileStore\n"
    "from coordinator.packing import pack_model; from protocol.errors import BrigadeError\n"
    "for source in sys.argv[2:]:\n"
    "    try:\n"
    "        packed = pack_model(source, FileStore(Path(sys.argv[1])), lambda *step: None)\n"
    "        print('packed', packed.manifest.n_blocks)\n"
    "    except BrigadeError as error:\n"
    "        print(error.code, error.message)\n"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_a_gguf_and_a_hub_id_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "no-suffix").write_bytes(b"GGUF")
    assert parse_source(str(tmp_path)) == FolderSource(folder=tmp_path.resolve(), link_root=tmp_path.resolve())
    assert parse_source(str(tmp_path / "m.gguf")) == GgufFileSource(path=(tmp_path / "m.gguf").resolve())
    assert isinstance(parse_source(str(tmp_path / "no-suffix")), GgufFileSource)
    assert parse_source("org/name") == HubSource(model_id="org/name", revision=None)
    assert parse_source("org/name@v1.0") == HubSource(model_id="org/name", revision="v1.0")


@pytest.mark.parametrize(
    "source",
    ["/no/such", "./no/such", "name", "a/b/c", "../no-such", "org/..", "org/name@../x", "dir/model.gguf", "-a/b"],
)
def test_what_is_neither_a_path_nor_an_id_is_not_found(source: str) -> None:
    with pytest.raises(NotFoundError, match="no folder or file"):
        parse_source(source)


@pytest.mark.parametrize("source", ["", "  ", "a\0b"])
def test_an_empty_source_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        parse_source(source)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\3\4")
    with pytest.raises(InvalidRequestError, match="Pickled"):
        parse_source(str(tmp_path / "pytorch_model.bin"))


def run_pack(tmp_path: Path, *sources: str, **environment: str) -> list[str]:
    """What packing each came to, in a process of its own: the Hub's client reads its environment at import."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, "-c", PACK, str(tmp_path / "store"), *sources],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        timeout=50,
    )
    return done.stdout.splitlines()


def test_a_model_in_the_hubs_cache_is_packed_through_its_links(tmp_path: Path) -> None:
    root = tmp_path / "hf" / "hub" / "models--org--name"
    model = write_model(tmp_path / "model")
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for path in model.iterdir():
        path.rename(root / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert run_pack(tmp_path, "org/name", HF_HUB_OFFLINE="1") == ["packed 2"]


class _Hub(BaseHTTPRequestHandler):
    """As little of the Hub as a download needs: one model, one gated, nothing else."""

    files: dict[str, bytes]
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0]
        self.asked.append(path)
        name = path.rpartition("/")[2]
        if "/gated/" in path:
            self.reply(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, with_body=with_body)
        elif "/org/name" not in path:
            self.reply(404, b"", {"X-Error-Code": "RepoNotFound"}, with_body=with_body)
        elif "/tree/" in path:
            listing = [{"type": "file", "path": f, "size": len(d), "oid": f} for f, d in self.files.items()]
            self.reply(200, json.dumps(listing).encode(), {}, with_body=with_body)
        elif path.startswith("/api/"):
            siblings = [{"rfilename": file} for file in self.files]
            info = {"id": "org/name", "sha": COMMIT, "siblings": siblings}
            self.reply(200, json.dumps(info).encode(), {}, with_body=with_body)
        elif name in self.files:
            self.reply(200, self.files[name], {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}, with_body=with_body)
        else:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body=with_body)

    def reply(self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub on loopback, and the paths that were asked of it."""
    model = write_model(tmp_path / "upstream")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    files |= {"pytorch_model.bin": b"pickle", "modeling_evil.py": b"raise SystemExit"}
    handler = type("Hub", (_Hub,), {"files": files, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, name="hub")
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked  # type: ignore[attr-defined]
    server.shutdown()
    thread.join(10)
    server.server_close()


def test_a_download_fetches_neither_pickles_nor_code_and_what_cannot_be_had_is_a_clear_error(
    tmp_path: Path, hub: tuple[str, list[str]]
) -> None:
    address, asked = hub
    packed, missing, gated = run_pack(tmp_path, "org/name@main", "org/missing", "gated/model", HF_ENDPOINT=address)
    assert packed == "packed 2"
    assert any(path.endswith("model.safetensors") for path in asked)
    assert not any(path.endswith((".bin", ".py")) for path in asked)
    assert missing.startswith("not_found the Hub has no model")
    assert gated.startswith("forbidden gated/model is gated")


def test_an_unreachable_hub_is_a_clear_error(tmp_path: Path) -> None:
    (outcome,) = run_pack(tmp_path, "org/name", HF_ENDPOINT="http://127.0.0.1:9")
    assert outcome.startswith("unreachable the Hub can't be reached")
