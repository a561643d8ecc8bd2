from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers as hf

from coordinator.file_store import FileStore
from coordinator.packing import pack_model
from protocol.embedding_settings import EMBEDDING_FILE, EmbeddingSettings, decode_embedding_settings
from protocol.errors import InvalidRequestError
from protocol.manifest import decode_manifest
from tests.coordinator.packing_support import no_progress, packed_tensors
from tests.support.tiny_models import CONTEXT, N_BLOCKS, TINY_ENCODERS, save_tiny_model

_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("name", "architecture", "context"),
    [
        ("bert", "BertModel", CONTEXT),
        ("roberta", "RobertaModel", CONTEXT - 2),
        ("modernbert", "ModernBertModel", CONTEXT),
    ],
)
def test_an_encoder_is_packed_without_its_heads(tmp_path: Path, name: str, architecture: str, context: int) -> None:
    whole = save_tiny_model(TINY_ENCODERS[name](), tmp_path / "model")
    store = FileStore(tmp_path / "store")
    packed = pack_model(str(tmp_path / "model"), store, no_progress, allow_no_tokenizer=True)
    manifest = decode_manifest(packed.manifest_bytes)
    assert (manifest.kind, manifest.architecture) == ("encoder", architecture)
    assert (manifest.n_blocks, manifest.context_length, manifest.kv_elements_per_token) == (N_BLOCKS, context, 0)
    wanted = {key for key in whole.base_model.state_dict() if "pooler" not in key}
    found = {key.removeprefix(f"{whole.base_model_prefix}.") for key in packed_tensors(store, manifest)}
    assert found == wanted
    assert any("tensors of heads were left out" in note for note in packed.notes)


@pytest.mark.parametrize(
    "config",
    [
        hf.MPNetConfig(**_SMALL, pad_token_id=1),
        hf.DebertaV2Config(**_SMALL, pad_token_id=0, relative_attention=True, position_biased_input=False),
    ],
    ids=["mpnet", "deberta"],
)
def test_tables_that_every_layer_needs_cannot_be_cut(tmp_path: Path, config: hf.PreTrainedConfig) -> None:
    hf.AutoModel.from_config(config).save_pretrained(tmp_path / "model")
    with pytest.raises(InvalidRequestError, match=r"every layer of the model needs .*can't be cut into blocks"):
        pack_model(str(tmp_path / "model"), FileStore(tmp_path / "s"), no_progress, allow_no_tokenizer=True)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (
            {"1_Pooling/config.json": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}},
            EmbeddingSettings(pooling="mean"),
        ),
        (
            {
                "1_Pooling/config.json": {"pooling_mode": "lasttoken"},
                "modules.json": [{"type": "sentence_transformers.models.Pooling"}],
                "sentence_bert_config.json": {"max_seq_length": 256},
            },
            EmbeddingSettings(pooling="last", max_tokens=256),
        ),
        (
            {
                "1_Pooling/config.json": {"pooling_mode_max_tokens": True},
                "modules.json": [{"type": "sentence_transformers.models.Dense"}],
            },
            EmbeddingSettings(unsupported="a further layer (Dense); pooling by pooling_mode_max_tokens"),
        ),
    ],
)
def test_how_the_authors_make_vectors_is_packed(
    tmp_path: Path, files: dict[str, object], expected: EmbeddingSettings | None
) -> None:
    folder, store = tmp_path / "model", FileStore(tmp_path / "store")
    save_tiny_model(TINY_ENCODERS["bert"](), folder)
    (folder / "1_Pooling").mkdir()
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    packed = pack_model(str(folder), store, no_progress, allow_no_tokenizer=True)
    hashes = {file.name: file.sha256 for file in packed.manifest.auxiliary}
    if expected is None:
        assert EMBEDDING_FILE not in hashes
        return
    digest = hashes[EMBEDDING_FILE]
    data = (store.root / "files" / digest[:2] / digest).read_bytes()
    assert decode_embedding_settings(data) == expected
