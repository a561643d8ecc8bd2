"""GGUF files: the very values that transformers gives, and refusal of those that lie."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from coordinator.file_store import FileStore
from coordinator.packing import PackedModel, pack_model
from protocol.errors import BrigadeError, InvalidRequestError, UntrustedFileError
from protocol.model_files.gguf_header import MAX_ARRAY_ELEMENTS, read_gguf
from protocol.model_files.gguf_source import GgufSource
from tests.coordinator.gguf_support import SETTINGS, write_gguf
from tests.coordinator.packing_support import check_tensors, no_progress

torch.set_num_threads(1)


def expect_transformers_values(path: Path, store: FileStore) -> PackedModel:
    packed = pack_model(str(path), store, no_progress, allow_no_tokenizer=True)
    model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    check_tensors(store, packed, model)
    return packed


@pytest.mark.parametrize("architecture", SETTINGS)
def test_every_tensor_equals_that_of_transformers(architecture: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", architecture, has_tokenizer=False)
    packed = expect_transformers_values(path, FileStore(tmp_path / "store"))
    assert packed.manifest.n_blocks == 2
    assert packed.manifest.weights_dtype == "float32"


@pytest.mark.parametrize("encoding", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_every_encoding_equals_that_of_transformers(encoding: str, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", encoding=GGMLQuantizationType[encoding], has_head=False)
    packed = expect_transformers_values(path, FileStore(tmp_path / "store"))
    assert packed.manifest.before == packed.manifest.after[:1]
    is_kept = encoding in ("Q4_0", "Q4_1", "Q8_0")
    assert packed.manifest.weights_dtype == (encoding.lower() if is_kept else "float32")


@pytest.mark.parametrize(("main", "better"), [("Q4_K", "Q6_K"), ("Q4_0", "Q2_K")])
def test_a_mix_of_k_quants_is_unpacked_to_transformers_values_and_the_operator_told(
    main: str, better: str, tmp_path: Path
) -> None:
    kinds = GGMLQuantizationType
    mix = {"attn_v.weight": kinds[better], "token_embd.weight": kinds[better]}
    mix |= {"attn_k.weight": kinds.Q5_K, "ffn_down.weight": kinds.Q5_0}
    path = write_gguf(tmp_path / "m.gguf", encoding=kinds[main], has_head=False, mix=mix, width=256)
    packed = expect_transformers_values(path, FileStore(tmp_path / "store"))
    (note,) = packed.notes
    assert f"3 in {better}" in note
    assert "2 in Q5_0, 2 in Q5_K" in note
    assert (f"8 in {main}" in note) == (main != "Q4_0")  # which is kept
    assert "unpacked to float32" in note
    assert "Q4_0, Q4_1, Q8_0" in note


def test_what_is_more_than_rows_in_another_order_is_unpacked(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf", "gpt2", encoding=GGMLQuantizationType.Q4_1, has_head=False, has_tokenizer=False
    )
    expect_transformers_values(path, FileStore(tmp_path / "store"))
    source = GgufSource(path)
    assert source.tensors["transformer.h.0.mlp.c_fc.weight"].dtype == "F32"  # transposed
    assert source.tensors["transformer.wte.weight"].dtype == "Q4_1"


@pytest.mark.parametrize("architecture", SETTINGS)
def test_nothing_that_is_used_is_said_to_be_left_out(architecture: str, tmp_path: Path) -> None:
    assert GgufSource(write_gguf(tmp_path / "m.gguf", architecture)).left_out == ()


@pytest.mark.parametrize(("name", "length"), [("blk.1.attn_q.scale", 1), ("blk.0.attn_q.bias", 64)])
def test_what_belongs_to_a_matrix_and_would_be_lost_is_refused(name: str, length: int, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", extra={name: length})
    with pytest.raises(InvalidRequestError, match=rf"1 scales and biases .*{name}.*safetensors"):
        GgufSource(path)


def test_stretched_positions_that_are_lost_are_told(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", extra={"rope_freqs.weight": 8, "other.weight": 8})
    notes = pack_model(str(path), FileStore(tmp_path / "store"), no_progress).notes
    assert any("left out: other.weight" in note for note in notes)
    assert any("rope_freqs.weight" in note and "safetensors" in note for note in notes)


@pytest.mark.filterwarnings("error")
def test_values_that_are_no_numbers_are_told_once(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", encoding=GGMLQuantizationType.Q5_0)
    whole = bytearray(path.read_bytes())
    tensor = next(tensor for tensor in read_gguf(path).tensors if tensor.name == "blk.0.ffn_up.weight")
    whole[tensor.offset : tensor.offset + 22] = b"\x00\x7c" + b"\xff" * 4 + bytes(16)  # infinity times zero
    path.write_bytes(whole)
    with pytest.raises(BrigadeError, match="NaN"):
        pack_model(str(path), FileStore(tmp_path / "store"), no_progress)


def test_the_tokenizer_comes_out_in_files_of_its_own(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    path = write_gguf(tmp_path / "m.gguf")
    packed = pack_model(str(path), store, no_progress)
    files = {file.name: store.path(file.sha256) for file in packed.manifest.auxiliary}
    assert files["chat_template.jinja"].read_text() == "{{ messages[0].content }}"
    assert Tokenizer.from_file(str(files["tokenizer.json"])).encode("ab<|user|>").ids == [26, 30]
    assert json.loads(files["generation_config.json"].read_bytes())["eos_token_id"] == 30
    assert str(tmp_path) not in "".join(path.read_text() for path in files.values())
    assert packed.manifest.is_chat
    other = tmp_path / "elsewhere" / "renamed.gguf"
    other.parent.mkdir()
    path.rename(other)
    assert pack_model(str(other), store, no_progress).revision == packed.revision


def test_an_unsupported_architecture_is_told_which_are(tmp_path: Path) -> None:
    path = altered(write_gguf(tmp_path / "m.gguf"), b"llama", b"llamb")
    with pytest.raises(InvalidRequestError, match=r"'llamb'.*qwen2"):
        GgufSource(path)


def altered(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new, 1))
    return path


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(pairs: bytes = b"", tensors: bytes = b"", *, n_pairs: int = 1, n_tensors: int = 0) -> bytes:
    """A GGUF file's bytes; the first key is the architecture."""
    first = string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")
    data = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_pairs) + first + pairs + tensors
    return data + bytes(-len(data) % 32) + bytes(64)


def tensor(name: bytes = b"t", sizes: tuple[int, ...] = (16,), encoding: int = 0, offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return string(name) + dimensions + struct.pack("<IQ", encoding, offset)


ARRAY = struct.pack("<I", 9)
LIES = {
    "empty": b"",
    "no magic": b"GGML" + header()[4:],
    "version 1": b"GGUF" + struct.pack("<I", 1) + header()[8:],
    "big-endian": b"GGUF" + struct.pack(">I", 3) + header()[8:],
    "too many tensors": header(n_tensors=2**60),
    "too many keys": header(n_pairs=2**60),
    "a key's length": header(struct.pack("<Q", 2**63) + bytes(30), n_pairs=2),
    "a string's length": header(string(b"k") + struct.pack("<IQ", 8, 2**62), n_pairs=2),
    "an unknown type": header(string(b"k") + struct.pack("<I", 99) + bytes(30), n_pairs=2),
    "an array's length": header(string(b"k") + ARRAY + struct.pack("<IQ", 4, 2**62), n_pairs=2),
    "an array of arrays": header(string(b"k") + ARRAY + struct.pack("<IQ", 9, 1) + bytes(30), n_pairs=2),
    "a huge array": header(
        string(b"k") + ARRAY + struct.pack("<IQ", 0, MAX_ARRAY_ELEMENTS + 1) + bytes(MAX_ARRAY_ELEMENTS + 1),
        n_pairs=2,
    ),
    "a key twice": header((string(b"k") + struct.pack("<IB", 0, 1)) * 2, n_pairs=3),
    "not utf-8": header(string(b"\xff\xfe") + struct.pack("<IB", 0, 1), n_pairs=2),
    "alignment 0": header(string(b"general.alignment") + struct.pack("<II", 4, 0), n_pairs=2),
    "alignment 33": header(string(b"general.alignment") + struct.pack("<II", 4, 33), n_pairs=2),
    "alignment's type": header(string(b"general.alignment") + struct.pack("<IQ", 10, 32), n_pairs=2),
    "no dimensions": header(tensors=tensor(sizes=()) + bytes(20), n_tensors=1),
    "many dimensions": header(tensors=tensor(sizes=(1,) * 9), n_tensors=1),
    "dimensions without end": header(tensors=string(b"t") + struct.pack("<I", 2**31) + bytes(40), n_tensors=1),
    "an empty dimension": header(tensors=tensor(sizes=(0, 4)), n_tensors=1),
    "a product that overflows": header(tensors=tensor(sizes=(2**32, 2**33)), n_tensors=1),
    "a tensor larger than the file": header(tensors=tensor(sizes=(2**20,)), n_tensors=1),
    "an offset after the end": header(tensors=tensor(offset=2**40), n_tensors=1),
    "an offset that overflows": header(tensors=tensor(offset=2**64 - 32), n_tensors=1),
    "an offset out of alignment": header(tensors=tensor(sizes=(1,), offset=3), n_tensors=1),
    "an unknown encoding": header(tensors=tensor(encoding=1000), n_tensors=1),
    "half a block": header(tensors=tensor(sizes=(33,), encoding=2), n_tensors=1),
    "a tensor twice": header(tensors=tensor() * 2, n_tensors=2),
    "overlapping tensors": header(tensors=tensor(b"a") + tensor(b"b", (8,), offset=32), n_tensors=2),
}


@pytest.mark.parametrize("what", LIES)
def test_a_gguf_that_lies_is_refused(what: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(LIES[what])
    with pytest.raises(UntrustedFileError):
        read_gguf(path)


def test_an_unknown_encoding_is_told_which_are_known(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(LIES["an unknown encoding"])
    with pytest.raises(UntrustedFileError, match=r"unknown encoding 1000, .* known are F32, F16, Q4_0, .*Q8_0"):
        read_gguf(path)


def test_the_truth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(tensors=tensor(), n_tensors=1))
    found = read_gguf(path)
    assert found.architecture == "llama"
    assert [(each.name, each.shape, each.n_bytes) for each in found.tensors] == [("t", (16,), 64)]


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    for n_bytes in (3, 23, 100, 1000, len(data) // 2, len(data) - 64):
        path.write_bytes(data[:n_bytes])
        with pytest.raises(UntrustedFileError):
            read_gguf(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 2**31),
        ("block_count", 3),
        ("embedding_length", 128),
        ("embedding_length", 2**31),
        ("attention.head_count", 0),
        ("attention.head_count", 3),
        ("feed_forward_length", 2**32 - 1),
        ("vocab_size", 2**31),
    ],
)
def test_metadata_that_do_not_fit_the_tensors_are_refused(tmp_path: Path, key: str, value: int) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = path.read_bytes()
    place = data.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    path.write_bytes(data[:place] + struct.pack("<I", value) + data[place + 4 :])
    store = FileStore(tmp_path / "store")
    with pytest.raises(BrigadeError):
        pack_model(str(path), store, no_progress, allow_no_tokenizer=True)
    assert store.hashes() == ()


@settings(max_examples=200)
@given(data=st.data())
def test_a_corrupted_header_is_refused_or_read_never_anything_else(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = bytearray(
        header(
            string(b"k") + ARRAY + struct.pack("<IQ", 8, 2) + string(b"x") * 2,
            tensor() + tensor(b"u", (1,), offset=64),
            n_pairs=2,
            n_tensors=2,
        )
    )
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    path.write_bytes(whole)
    try:
        found = read_gguf(path)
    except UntrustedFileError:
        return
    assert all(0 < each.offset <= each.offset + each.n_bytes <= len(whole) for each in found.tensors)
