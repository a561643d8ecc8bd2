from __future__ import annotations

import json

import pytest

from client.causal_lm.files import read_configs, transformers_tokenizer
from client.model_files import ModelFiles
from client.tokenizer import ModelTokenizer
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.manifest import encode_manifest, revision_of
from tests.support.scripted_cluster import scripted_manifest
from tests.support.tiny_tokenizer import tiny_files

LLAMA = {"model_type": "llama", "vocab_size": 264, "eos_token_id": 3, "pad_token_id": 0}


def files_with(**changes: bytes | None) -> ModelFiles:
    """Those of a tiny chat model; None leaves one out."""
    given = {name.replace("__", "."): data for name, data in changes.items()}
    contents = tiny_files() | {"config.json": json.dumps(LLAMA).encode()} | given
    kept = {name: data for name, data in contents.items() if data is not None}
    manifest = scripted_manifest(kept, 64)
    return ModelFiles(revision=revision_of(encode_manifest(manifest)), manifest=manifest, contents=kept)


def test_configs_are_read_as_transformers_reads_them() -> None:
    config, recommended = read_configs(files_with())
    assert (config.model_type, recommended.eos_token_id, recommended.temperature) == ("llama", [1, 3], 0.5)
    _, derived = read_configs(files_with(generation_config__json=None))
    assert (derived.eos_token_id, derived.pad_token_id) == (3, 0)


@pytest.mark.parametrize("config", [b'{"model_type": "newest"}', b"{", b"[]"])
def test_a_config_that_transformers_cannot_read_is_the_models_fault(config: bytes) -> None:
    with pytest.raises(UntrustedFileError, match=r"transformers 5.* can't read this model's config.json"):
        read_configs(files_with(config__json=config))


async def test_the_tokenizer_makes_the_ids_that_clients_make() -> None:
    files = files_with()
    known = ModelTokenizer(files)
    tokenizer = transformers_tokenizer(files, known)
    assert tokenizer("the tin")["input_ids"] == await known.encoded_text("the tin")
    chat = [{"role": "user", "content": "hi"}]
    laid_out = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    assert laid_out["input_ids"] == await known.encoded_chat(chat)
    assert (tokenizer.padding_side, tokenizer.pad_token_id, tokenizer.model_max_length) == ("left", 3, 64)


def test_a_model_without_a_tokenizer_says_so() -> None:
    files = files_with(tokenizer__json=None)
    with pytest.raises(InvalidRequestError, match="no tokenizer: give generate token ids"):
        transformers_tokenizer(files, ModelTokenizer(files))
