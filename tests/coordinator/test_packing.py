"""Packing from end to end: the same tensors come out, the same revision each time, and nothing after a failure."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors import deserialize

from coordinator.file_store import FileStore
from coordinator.packing import PackedModel, pack_model
from protocol.errors import InvalidRequestError, StorageError, UntrustedFileError
from protocol.manifest import decode_manifest
from tests.coordinator.packing_support import (
    files_limited_to,
    llama_tensors,
    no_progress,
    packed_tensors,
    write_model,
    write_safetensors,
)
from tests.support.tiny_models import N_BLOCKS, TINY_CONFIGS, save_tiny_model

torch.set_num_threads(1)


def pack(source: Path, store: FileStore) -> PackedModel:
    return pack_model(str(source), store, no_progress, allow_no_tokenizer=True)


def auxiliary(packed: PackedModel, store: FileStore) -> dict[str, bytes]:
    return {file.name: store.path(file.sha256).read_bytes() for file in packed.manifest.auxiliary}


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_every_architecture_keeps_its_tensors_and_states_its_numbers(
    name: str, tmp_path: Path, store: FileStore
) -> None:
    model = save_tiny_model(TINY_CONFIGS[name](), tmp_path / "model")
    packed = pack(tmp_path / "model", store)
    manifest = packed.manifest
    assert manifest.n_blocks == N_BLOCKS
    assert manifest.architecture == type(model).__name__
    assert manifest.weights_dtype == "float32"
    assert manifest.vocab_size == model.config.vocab_size
    assert decode_manifest(store.path(packed.revision).read_bytes(), expected=packed.revision) == manifest

    from_checkpoint = tmp_path / "model" / "model.safetensors"
    expected = packed_tensors_of(from_checkpoint)
    assert packed_tensors(store, manifest) == expected
    assert sum(file.n_parameters for file in {f.sha256: f for f in manifest.all_files()}.values()) == sum(
        len(data) // 4 for _, _, data in expected.values()
    )

    cache = model(torch.tensor([[3]]), use_cache=True).past_key_values
    assert manifest.kv_elements_per_token == max(
        layer.keys[:, :, -1:].numel() + layer.values[:, :, -1:].numel() for layer in cache.layers
    )
    ties = bool(model.config.tie_word_embeddings)
    shared = {file.name for file in manifest.before} & {file.name for file in manifest.after}
    assert ("embedding.safetensors" in shared) == ties


def packed_tensors_of(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {
        name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"]))
        for name, tensor in deserialize(path.read_bytes())
    }


def test_a_sharded_model_gives_the_same_revision_as_a_single_file(tmp_path: Path, store: FileStore) -> None:
    single = pack(write_model(tmp_path / "single"), store)
    sharded = write_model(tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    tensors = llama_tensors()
    weight_map = {}
    for index, name in enumerate(sorted(tensors, reverse=True)):
        write_safetensors(sharded / f"model-{index}.safetensors", {name: tensors[name]})
        weight_map[name] = f"model-{index}.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    packed = pack(sharded, store)
    assert packed.revision == single.revision
    assert {name: data for name, (_, _, data) in packed_tensors(store, packed.manifest).items()} == tensors
    assert packed.manifest.weights_dtype == "bfloat16"


def test_progress_counts_up_to_the_total(tmp_path: Path, store: FileStore) -> None:
    seen: list[tuple[str, int, int]] = []
    pack_model(str(write_model(tmp_path / "m")), store, lambda *step: seen.append(step))
    packing = [(done, total) for step, done, total in seen if step == "pack"]
    assert packing == sorted(packing)
    assert packing[-1] == (320, 320)
    assert Counter(step for step, _, _ in seen)["pack"] >= 5


def test_extra_prediction_layers_are_left_out_and_reported(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m")
    extra = {"model.layers.2.mlp.up_proj.weight": b"x" * 64, "mtp.layers.0.weight": b"y" * 64}
    write_safetensors(folder / "model.safetensors", llama_tensors() | extra)
    packed = pack(folder, store)
    assert "2 tensors" in packed.notes[0]
    assert not packed_tensors(store, packed.manifest).keys() & extra.keys()


def test_a_failure_halfway_leaves_nothing_of_its_own(tmp_path: Path, store: FileStore) -> None:
    kept = pack(write_model(tmp_path / "first"), store)
    before = store.hashes()
    second = write_model(tmp_path / "second")
    tensors = llama_tensors() | {"model.layers.1.mlp.up_proj.weight": b"z" * 64}
    write_safetensors(second / "model.safetensors", tensors)

    def interrupt(step: str, n_done: int, n_total: int) -> None:
        if step == "pack" and n_done > 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_model(str(second), store, interrupt)
    assert store.hashes() == before
    assert store.has(kept.manifest.blocks[0].sha256)
    assert not list((store.root / "partial").iterdir())


def test_a_source_that_shrinks_while_it_is_packed_is_refused(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m")

    def shrink(step: str, n_done: int, n_total: int) -> None:
        if step == "pack":
            os.truncate(folder / "model.safetensors", 700)

    with pytest.raises(UntrustedFileError, match="ended at byte 700"):
        pack_model(str(folder), store, shrink)
    assert store.hashes() == ()


def test_a_full_disk_is_said_with_numbers_and_leaves_nothing(tmp_path: Path, store: FileStore) -> None:
    save_tiny_model(TINY_CONFIGS["llama"](), tmp_path / "m")
    with files_limited_to(9000), pytest.raises(StorageError, match="no room on the disk"):
        pack(tmp_path / "m", store)
    assert store.hashes() == ()


def test_a_model_larger_than_the_disk_is_refused_before_copying(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m")
    n_rows = (store.free_bytes() + 2**34) // 8
    header, offset = {}, 0
    for name in llama_tensors():
        shape = [n_rows if name == "lm_head.weight" else 8, 4]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + 8 * shape[0]]}
        offset += 8 * shape[0]
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)  # sparse: takes no room
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes and [\d,]+ are free"):
        pack(folder, store)
    assert store.hashes() == ()


def test_a_stored_copy_of_a_tied_embedding_is_left_out(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m", config={"tie_word_embeddings": True})
    tensors = llama_tensors()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    packed = pack(folder, store)
    assert "copy of the tied embedding" in packed.notes[0]
    assert packed_tensors(store, packed.manifest).keys() == tensors.keys() - {"lm_head.weight"}
    assert packed.manifest.before == packed.manifest.after[:1]


def test_embeddings_that_differ_are_not_tied_whatever_the_config_says(tmp_path: Path, store: FileStore) -> None:
    packed = pack(write_model(tmp_path / "m", config={"tie_word_embeddings": True}), store)
    assert "kept apart" in packed.notes[0]
    assert packed_tensors(store, packed.manifest).keys() == llama_tensors().keys()
    assert not set(packed.manifest.before) & set(packed.manifest.after)
    assert json.loads(auxiliary(packed, store)["config.json"])["tie_word_embeddings"] is False


def test_a_model_without_a_tokenizer_needs_to_be_allowed(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m", tokenizer=False)
    with pytest.raises(InvalidRequestError, match="has no tokenizer"):
        pack_model(str(folder), store, no_progress)
    assert store.hashes() == ()
    assert not pack(folder, store).manifest.is_chat


def test_config_names_no_code(tmp_path: Path, store: FileStore) -> None:
    folder = write_model(tmp_path / "m", config={"auto_map": {"AutoModelForCausalLM": "evil.Evil"}})
    files = auxiliary(pack(folder, store), store)
    assert b"auto_map" not in files["config.json"]
    assert json.loads(files["config.json"])["architectures"] == ["LlamaForCausalLM"]
