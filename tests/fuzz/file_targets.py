"""What comes in files: weights in both formats, configs, tokenizers, chat templates, backups, keys."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from client.chat_template import ChatTemplate
from client.model_files import ModelFiles
from client.tokenizer import ModelTokenizer
from coordinator.backup import NEEDED_STATE_FILES, read_backup, write_backup
from coordinator.packing.model_config import model_numbers, read_config
from coordinator.packing.safetensors_format import header_size, read_header
from coordinator.packing.safetensors_source import INDEX_FILE, SafetensorsSource
from coordinator.packing.tokenizer_files import folder_files
from protocol.errors import InvalidRequestError, StorageError, UntrustedFileError
from protocol.ids import Revision
from protocol.manifest import decode_manifest
from protocol.model_files.gguf_header import read_gguf
from protocol.model_files.gguf_source import GgufSource
from protocol.private_keys import key_from_pem, key_to_pem, new_key
from tests.coordinator.gguf_support import write_gguf
from tests.coordinator.packing_support import CONFIG
from tests.fuzz.target import Target
from tests.fuzz.wire_targets import _manifest_seeds
from tests.support.tiny_tokenizer import CHAT_TEMPLATE, tiny_files
from worker.loading import _open_tensors, load_config

_MESSAGES = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"})


@contextlib.contextmanager
def _folder(**contents: bytes) -> Iterator[Path]:
    """A folder with files of these names, of which dots are written as double underscores."""
    with tempfile.TemporaryDirectory(prefix="brigade-fuzz-") as folder:
        for name, data in contents.items():
            (Path(folder) / name.replace("__", ".")).write_bytes(data)
        yield Path(folder)


def gguf_headers(data: bytes) -> None:
    """A GGUF header: of what is accepted, every tensor lies inside the file, and none on another."""
    with _folder(model__gguf=data) as folder:
        header = read_gguf(folder / "model.gguf")
    ends = [(tensor.offset, tensor.offset + tensor.n_bytes) for tensor in header.tensors]
    places = sorted(place for place in ends if place[0] < place[1])
    assert all(start > 0 and end <= len(data) for start, end in places)
    assert all(one[1] <= other[0] for one, other in pairwise(places))


def gguf_models(data: bytes) -> None:
    """A whole GGUF file through transformers' own name maps, and every tensor of it unpacked."""
    with _folder(model__gguf=data) as folder:
        source = GgufSource(folder / "model.gguf")
        for name, info in source.tensors.items():
            assert sum(piece.nbytes for piece in source.pieces(name)) == info.n_bytes


def safetensors_headers(data: bytes) -> None:
    """A safetensors file: what is accepted has its tensors side by side and no byte besides."""
    n_header = header_size(data[:8], len(data), label="fuzzed")
    tensors = read_header(data[8 : 8 + n_header], len(data), label="fuzzed")
    assert sum(tensor.info.n_bytes for tensor in tensors.values()) == len(data) - 8 - n_header


def safetensors_folders(data: bytes) -> None:
    """An index and a shard, which a line of NUL bytes separates."""
    index, _, shard = data.partition(b"\0\n\0")
    files = {INDEX_FILE.replace(".", "__"): index, "a__safetensors": shard}
    with _folder(**files) as folder, SafetensorsSource(folder, link_root=folder) as source:
        for name, info in source.tensors.items():
            assert sum(piece.nbytes for piece in source.pieces(name)) == info.n_bytes


def worker_weights(data: bytes) -> None:
    """A file of weights as a worker reads it, encoded matrices too."""
    with _folder(weights=data) as folder, _open_tensors([folder / "weights"]) as tensors:
        for tensor in tensors.values():
            with contextlib.suppress(SafetensorError):  # which who loads a model translates
                assert tuple(tensor[...].shape) == tuple(tensor.get_shape())


def model_configs(data: bytes) -> None:
    """A config.json as packing reads it, and as a worker does."""
    with _folder(config__json=data) as folder:
        with contextlib.suppress(UntrustedFileError):
            load_config(folder)
        config, _ = read_config(folder, link_root=folder)
        model_numbers(config)


def tokenizer_settings(data: bytes) -> None:
    """A tokenizer_config.json as packing separates it."""
    with _folder(tokenizer_config__json=data) as folder:
        folder_files(folder, link_root=folder)


@cache
def _tokenizer_files() -> dict[str, bytes]:
    return tiny_files()


def tokenizers(data: bytes) -> None:
    """One of a model's small files, named in the first line, as a client reads and uses it."""
    name, _, text = data.partition(b"\n")
    known = sorted(_tokenizer_files())
    changed = next((each for each in known if each.encode() == name), known[len(name) % len(known)])
    manifest = decode_manifest(_manifest_seeds()[0])
    contents = _tokenizer_files() | {changed: text}
    tokenizer = ModelTokenizer(ModelFiles(revision=Revision("ab" * 32), manifest=manifest, contents=contents))
    with contextlib.suppress(InvalidRequestError):
        asyncio.run(tokenizer.encoded_text("why is the sky blue?"))


def chat_templates(data: bytes) -> None:
    """A template, compiled and run."""
    template = ChatTemplate(data.decode("utf-8", "replace"), {"bos_token": "<s>"})
    asyncio.run(template.rendered(_MESSAGES, timeout_s=1.0))


def backups(data: bytes) -> None:
    """A backup's archive as it is."""
    with _folder(backup=data) as folder:
        read_backup(folder / "backup")


def backup_parts(data: bytes) -> None:
    """A backup whose table, state file or contents are anybody's, with hashes that are right."""
    kind, _, text = data.partition(b"\n")
    with tempfile.TemporaryDirectory(prefix="brigade-fuzz-") as folder:
        path = Path(folder) / "backup"
        state = dict.fromkeys(NEEDED_STATE_FILES, "x")
        write_backup(path, state=state, tables={"t": []}, schema="1", program_version="1", now=datetime.now(UTC))
        _rewrite(
            path, {b"table": "tables/t", b"state": f"state/{NEEDED_STATE_FILES[0]}"}.get(kind, "backup.json"), text
        )
        backup = read_backup(path)
        assert all(isinstance(row, dict) for rows in backup.tables.values() for row in rows)


def _rewrite(path: Path, changed: str, text: bytes) -> None:
    """Put `text` into the archive in place of a part, and its hash into the contents."""
    with tarfile.open(path) as archive:
        parts = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
    parts[changed] = text
    if changed != "backup.json":
        contents = json.loads(parts["backup.json"])
        contents["hashes"][changed] = hashlib.sha256(text).hexdigest()
        contents["n_rows"] = {"t": len(text.splitlines())} if changed == "tables/t" else contents["n_rows"]
        parts["backup.json"] = json.dumps(contents).encode()
    with tarfile.open(path, "w") as archive:
        for name, data in parts.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def private_keys(data: bytes) -> None:
    """A private key's file."""
    with contextlib.suppress(ValueError):
        key_from_pem(data)


def _gguf_seeds() -> list[bytes]:
    folder = Path(tempfile.mkdtemp(prefix="brigade-fuzz-"))
    try:
        return [write_gguf(folder / f"{kind}.gguf", kind, has_tokenizer=False).read_bytes() for kind in ("llama",)]
    finally:
        shutil.rmtree(folder)


def _small_gguf_seeds() -> list[bytes]:
    return [data[:12_000] for data in _gguf_seeds()] + [_hand_made_gguf()]


def _hand_made_gguf() -> bytes:
    """Two tensors, an array, and scalars: small enough that edits hit what counts."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    def number(value: int, width: int = 4) -> bytes:
        return value.to_bytes(width, "little")

    pairs = [
        text(b"general.architecture") + number(8) + text(b"llama"),
        text(b"llama.block_count") + number(4) + number(1),
        text(b"general.alignment") + number(4) + number(32),
        text(b"tokens") + number(9) + number(8) + number(2, 8) + text(b"a") + text(b"b"),
        text(b"scores") + number(9) + number(6) + number(2, 8) + bytes(8),
    ]
    tensors = [
        text(b"a") + number(2) + number(32, 8) + number(1, 8) + number(8) + number(0, 8),
        text(b"b") + number(1) + number(8, 8) + number(0) + number(64, 8),
    ]
    head = b"GGUF" + number(3) + number(len(tensors), 8) + number(len(pairs), 8) + b"".join(pairs + tensors)
    return head + bytes(-len(head) % 32) + bytes(64 + 32)


def _safetensors_seeds() -> list[bytes]:
    plain = {"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)}
    return [
        save(plain),
        save({"m.q4_1": torch.ones(2, 20, dtype=torch.uint8), "m2.q8_0": torch.zeros(1, 34, dtype=torch.uint8)}),
    ]


def _folder_seeds() -> list[bytes]:
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys("abc", "a.safetensors")}
    return [json.dumps(index).encode() + b"\0\n\0" + _safetensors_seeds()[0]]


def _settings_seeds() -> list[bytes]:
    named = [{"name": "default", "template": "{{ messages }}"}, {"name": "tools", "template": "x"}]
    return [
        json.dumps({"bos_token": "<s>", "chat_template": template, "auto_map": {"A": "b.c"}}).encode()
        for template in ("{{ messages }}", named)
    ]


def _tokenizer_seeds() -> list[bytes]:
    return [name.encode() + b"\n" + data for name, data in _tokenizer_files().items()]


def _config_seeds() -> list[bytes]:
    other = {"model_type": "gemma2", "layer_types": ["sliding_attention", "full_attention"], "rope_theta": 1e4}
    return [json.dumps(CONFIG | each).encode() for each in ({}, other, {"id2label": {"0": "a"}, "num_labels": 2})]


def _template_seeds() -> list[bytes]:
    return [
        CHAT_TEMPLATE.encode(),
        b"{% set n = namespace(n=0) %}{% for m in messages[1:] if m.role %}{{ loop.index ~ m|tojson }}{% endfor %}",
        b"{% macro f(x) %}{{ x.content | trim | upper }}{% endmacro %}{{ f(messages[0]) * 3 }}{{ x.y }}",
        b"{% generation %}{{ '%5d' | format(3) }}{% endgeneration %}{{ strftime_now('%Y') }}{{ range(9) | list }}",
    ]


def _backup_seeds() -> list[bytes]:
    folder = Path(tempfile.mkdtemp(prefix="brigade-fuzz-"))
    try:
        rows = {"t": [{"a": 1, "at": datetime(2026, 1, 1, tzinfo=UTC), "b": b"x"}]}
        state = dict.fromkeys(NEEDED_STATE_FILES, "x")
        write_backup(folder / "b", state=state, tables=rows, schema="1", program_version="1", now=datetime.now(UTC))
        return [(folder / "b").read_bytes()]
    finally:
        shutil.rmtree(folder)


def _part_seeds() -> list[bytes]:
    contents = {"format": 1, "created_at": "2026-01-01T00:00:00Z", "program_version": "1", "schema": "1"}
    hashes = {f"state/{name}": hashlib.sha256(b"x").hexdigest() for name in NEEDED_STATE_FILES}
    hashes["tables/t"] = hashlib.sha256(b"").hexdigest()
    contents |= {"coordinator_id": "c", "hashes": hashes, "n_rows": {"t": 0}}
    row = b'{"a":1,"at":{"$time":"2026-01-01T00:00:00+00:00"},"b":{"$bytes":"eA=="}}'
    return [b"table\n" + row, b"state\nc-1", b"contents\n" + msgspec.json.encode(contents)]


_REFUSED = (UntrustedFileError, InvalidRequestError)

FILE_TARGETS = (
    Target(name="gguf-headers", run=gguf_headers, seeds=_small_gguf_seeds, allowed=(UntrustedFileError,)),
    Target(name="gguf-models", run=gguf_models, seeds=_gguf_seeds, allowed=_REFUSED),
    Target(
        name="safetensors-headers", run=safetensors_headers, seeds=_safetensors_seeds, allowed=(UntrustedFileError,)
    ),
    Target(name="safetensors-folders", run=safetensors_folders, seeds=_folder_seeds, allowed=_REFUSED),
    Target(name="worker-weights", run=worker_weights, seeds=_safetensors_seeds, allowed=(UntrustedFileError,)),
    Target(name="model-configs", run=model_configs, seeds=_config_seeds, allowed=_REFUSED),
    Target(name="tokenizer-settings", run=tokenizer_settings, seeds=_settings_seeds, allowed=_REFUSED),
    Target(name="tokenizers", run=tokenizers, seeds=_tokenizer_seeds, allowed=(UntrustedFileError,)),
    Target(name="chat-templates", run=chat_templates, seeds=_template_seeds, allowed=_REFUSED),
    Target(name="backups", run=backups, seeds=_backup_seeds, allowed=(StorageError,)),
    Target(name="backup-parts", run=backup_parts, seeds=_part_seeds, allowed=(StorageError,)),
    Target(name="private-keys", run=private_keys, seeds=lambda: [key_to_pem(new_key()).encode()]),
)
