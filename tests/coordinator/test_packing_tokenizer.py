"""The small files: always a tokenizer.json, the chat template on its own, nothing that names code or a machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import GPT2Tokenizer

from coordinator.packing.tokenizer_files import folder_files
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES
from tests.coordinator.packing_support import CONFIG, write_tokenizer


def test_the_template_moves_out_of_the_settings(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    settings = {"chat_template": "{{ x }}", "eos_token": "é", "auto_map": {"AutoTokenizer": ["t.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenization_evil.py").write_text("raise SystemExit")
    files = folder_files(tmp_path, link_root=tmp_path)
    assert files.keys() == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert files["chat_template.jinja"] == b"{{ x }}"
    assert json.loads(files["tokenizer_config.json"]) == {"eos_token": "é"}
    assert files["tokenizer.json"] == (tmp_path / "tokenizer.json").read_bytes()


def test_a_template_file_wins_and_named_templates_give_the_default(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert folder_files(tmp_path, link_root=tmp_path)["chat_template.jinja"] == b"d"
    (tmp_path / "chat_template.jinja").write_text("own")
    assert folder_files(tmp_path, link_root=tmp_path)["chat_template.jinja"] == b"own"


def test_a_template_for_tools_alone_is_kept_beside(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert folder_files(tmp_path, link_root=tmp_path)["chat_template_tool_use.jinja"] == b"t"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("own")
    assert folder_files(tmp_path, link_root=tmp_path)["chat_template_tool_use.jinja"] == b"own"


def test_a_vocabulary_with_merges_becomes_a_tokenizer(tmp_path: Path) -> None:
    tokens = ["a", "b", "c", "ab", "<|endoftext|>"]
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gpt2"}))
    (tmp_path / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    files = folder_files(tmp_path, link_root=tmp_path)
    tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    expected = GPT2Tokenizer.from_pretrained(tmp_path)("abc")["input_ids"]
    assert tokenizer.encode("abc").ids == expected == [3, 2]


def test_a_vocabulary_that_cannot_be_converted_says_what_to_add(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "tokenizer.model").write_bytes(b"not sentencepiece")
    with pytest.raises(InvalidRequestError, match=r"add a tokenizer\.json"):
        folder_files(tmp_path, link_root=tmp_path)


def test_a_folder_without_a_tokenizer_gives_none(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("{}")
    assert folder_files(tmp_path, link_root=tmp_path) == {"generation_config.json": b"{}"}


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_a_malformed_file_is_refused_by_name(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UntrustedFileError, match=name):
        folder_files(tmp_path, link_root=tmp_path)


def test_a_huge_file_and_one_that_leads_elsewhere_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with (folder / "tokenizer.json").open("wb") as file:
        file.truncate(MAX_AUXILIARY_FILE_BYTES + 1)
    with pytest.raises(UntrustedFileError, match="at most"):
        folder_files(folder, link_root=folder)
    (folder / "tokenizer.json").unlink()
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(UntrustedFileError, match="leads out"):
        folder_files(folder, link_root=folder)
