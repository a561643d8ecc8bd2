from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from client.causal_lm import settings
from client.causal_lm.settings import Wanted, merged_config, wanted_of
from protocol.errors import InvalidRequestError


def config(**fields: Any) -> GenerationConfig:
    made: Any = GenerationConfig
    return made(**fields)


def wanted(of_model: GenerationConfig, given: GenerationConfig | None = None, **changes: Any) -> Wanted:
    return wanted_of(merged_config(of_model, given, changes), width=5)


def test_what_is_passed_goes_before_a_config_and_that_before_the_models_own() -> None:
    of_model = config(do_sample=True, temperature=0.3, top_p=0.8, eos_token_id=[1, 3], max_new_tokens=9)
    found = wanted(of_model, config(temperature=0.5, top_p=0.9), temperature=0.7)
    assert found.options == {
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": settings.DEFAULT_TOP_K,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": (1, 3),
        "max_tokens": 9,
    }
    assert (found.eos_token_ids, found.pad_token_id, found.n_each) == ((1, 3), 1, 1)
    greedy = wanted(of_model, do_sample=False, eos_token_id=7, pad_token_id=0)
    assert (greedy.options["temperature"], greedy.options["stop_token_ids"], greedy.pad_token_id) == (0.0, (7,), 0)


def test_what_isnt_said_is_what_transformers_does() -> None:
    own: Any = GenerationConfig
    defaults = own._get_default_generation_params()
    assert (defaults["max_length"], defaults["top_k"]) == (settings.DEFAULT_MAX_TOKENS, settings.DEFAULT_TOP_K)
    # transformers' own defaults change nothing here either
    quiet = {name: value for name, value in defaults.items() if name != "max_length"}
    assert wanted(config(), None, **quiet).options == wanted(config()).options | {"default_max_tokens": 20}


def test_lengths() -> None:
    assert wanted(config(), max_length=12).options["default_max_tokens"] == 7
    assert wanted(config(max_length=12), max_new_tokens=3).options["max_tokens"] == 3
    with pytest.raises(InvalidRequestError, match="max_length is 5 and the prompt has 5 tokens"):
        wanted(config(), max_length=5)


def test_every_setting_is_carried_out_or_without_effect_or_refused_by_its_name() -> None:
    known = {name for name in vars(config()) if not name.startswith("_")}
    assert (settings._CARRIED_OUT | settings._WITHOUT_EFFECT | settings._CHANGES_NOTHING.keys()) <= known
    for name in known - settings._CARRIED_OUT - settings._WITHOUT_EFFECT:
        asked = config()
        setattr(asked, name, 17)
        with pytest.raises(InvalidRequestError, match=f"{name} is 17, which a cluster can't carry out"):
            wanted_of(asked, width=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_return_sequences": 3}, "`num_return_sequences` different than 1"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"num_beams": 4}, "num_beams is 4.*num_beams=1"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores.*logprobs=20"),
        ({"max_new_token": 4}, "generate takes no max_new_token "),
        ({"logits_processor": [1], "assistant_model": None}, "generate takes no logits_processor with"),
    ],
)
def test_what_cannot_be_done_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        wanted(config(), None, **changes)


def test_a_misspelt_field_of_a_config_is_refused_and_the_models_own_words_arent() -> None:
    of_model = config(chat_format="chatml")
    assert wanted(of_model, config(chat_format="chatml")).n_each == 1
    with pytest.raises(InvalidRequestError, match="max_new_token "):
        wanted(of_model, config(max_new_token=4))
