from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.model_files import ModelFiles
from client.options import SamplingDefaults
from client.tokenizer import ModelTokenizer, loaded_tokenizer
from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.ids import Revision
from tests.support.scripted_cluster import scripted_manifest
from tests.support.tiny_tokenizer import ids_of, tiny_files


def tokenizer_of(**files: object) -> ModelTokenizer:
    """With the tiny model's files; `name_json=...` replaces one, None removes it."""
    contents = tiny_files()
    for name, value in files.items():
        file_name = name.replace("_json", ".json").replace("_jinja", ".jinja")
        contents.pop(file_name, None)
        if value is not None:
            contents[file_name] = value if isinstance(value, bytes) else json.dumps(value).encode()
    return ModelTokenizer(
        ModelFiles(revision=Revision("0" * 64), manifest=scripted_manifest(contents, 100), contents=contents)
    )


async def test_text_gets_the_models_special_tokens() -> None:
    assert await tokenizer_of().encoded_text("the") == [0, *ids_of("the")]


async def test_a_template_that_writes_bos_itself_gets_no_second_one() -> None:
    ids = await tokenizer_of().encoded_chat([{"role": "user", "content": "the"}])
    assert ids == ids_of("<s><|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n")


def test_stop_tokens_come_from_every_file_that_names_them() -> None:
    assert tokenizer_of().stop_token_ids == (1, 3)
    only_config = tokenizer_of(generation_config_json=None, tokenizer_config_json=None)
    assert only_config.stop_token_ids == (1,)
    nested = tokenizer_of(
        generation_config_json={}, tokenizer_config_json={}, config_json={"text_config": {"eos_token_id": [2]}}
    )
    assert nested.stop_token_ids == (2,)
    odd = tokenizer_of(
        generation_config_json={"eos_token_id": [True, "3", None, 10**6, -1]},
        config_json={},
        tokenizer_config_json={"eos_token": "not a token"},
    )
    assert odd.stop_token_ids == ()


def test_sampling_is_the_models_own_only_if_it_samples() -> None:
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
    assert tokenizer_of(generation_config_json=config).defaults == SamplingDefaults(repetition_penalty=1.1)
    assert tokenizer_of(generation_config_json={**config, "do_sample": True}).defaults == SamplingDefaults(
        temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1
    )
    assert tokenizer_of(generation_config_json={"do_sample": True}).defaults.temperature == 1.0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_json", b"{}"),
        ("tokenizer_json", b"\xff\x00"),
        ("config_json", b"[1]"),
        ("generation_config_json", b"{"),
        ("tokenizer_config_json", b"\xff"),
        ("chat_template_jinja", b"\xff"),
        ("chat_template_jinja", b"{% for"),
    ],
)
def test_a_malformed_file_is_named(name: str, content: bytes) -> None:
    with pytest.raises(UntrustedFileError, match=r"tokenizer|config|chat template"):
        tokenizer_of(**{name: content})


def test_a_file_that_names_too_many_stop_tokens_is_refused() -> None:
    with pytest.raises(UntrustedFileError, match="100 stop tokens"):
        tokenizer_of(
            generation_config_json={"eos_token_id": list(range(100))}, config_json={}, tokenizer_config_json={}
        )


async def test_a_prompt_is_never_cut_by_what_training_left_in_the_file() -> None:
    raw = json.loads(tiny_files()["tokenizer.json"])
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "<s>",
    }
    assert len(await tokenizer_of(tokenizer_json=raw).encoded_text("abcdefgh")) == 9


async def test_a_model_without_template_takes_no_chat() -> None:
    tokenizer = tokenizer_of(chat_template_jinja=None)
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidRequestError, match="--raw"):
        await tokenizer.encoded_chat([{"role": "user", "content": "x"}])


async def test_a_template_inside_the_tokenizers_config_serves_too() -> None:
    tokenizer = tokenizer_of(
        chat_template_jinja=None, tokenizer_config_json={"chat_template": "{{ messages[0].content }}"}
    )
    assert await tokenizer.encoded_chat([{"role": "user", "content": "the"}]) == ids_of("the")


@pytest.mark.parametrize("messages", [[], ["text"], [{}], [{"role": 1}], [{"role": "user", "content": "\udfff"}]])
async def test_malformed_messages_are_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InvalidRequestError):
        await tokenizer_of().encoded_chat(messages)


@given(st.text(min_size=1, max_size=40))
async def test_text_comes_back_as_it_went_in(text: str) -> None:
    tokenizer = tokenizer_of()
    stream = tokenizer.text_stream()
    assert stream is not None
    ids = await tokenizer.encoded_text(text)
    for special in ("<s>", "</s>", "<|im_start|>", "<|im_end|>"):
        text = text.replace(special, "")
    assert "".join(stream.push(token_id) for token_id in ids) + stream.flush() == text


async def test_is_loaded_in_a_thread() -> None:
    contents = tiny_files()
    manifest = scripted_manifest(contents, 9)
    loaded = await loaded_tokenizer(ModelFiles(revision=Revision("0" * 64), manifest=manifest, contents=contents))
    assert loaded.vocab_size == 270
