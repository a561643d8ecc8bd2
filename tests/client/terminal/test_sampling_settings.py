from __future__ import annotations

import pytest

from client.options import GenerationOptions, SamplingDefaults
from client.terminal.sampling_settings import setting_rows, settings_of, with_setting, with_settings
from protocol.errors import InvalidRequestError


def test_a_setting_is_set_and_left_to_the_model_again() -> None:
    options = GenerationOptions(default_max_tokens=99, min_trust=0.5)
    changed = with_setting(with_setting(options, "top-k", "3"), "temperature", "0.5")
    assert settings_of(changed) == {"top_k": 3, "temperature": 0.5}
    assert with_setting(with_setting(changed, "top_k", "default"), "temperature", "default") == options
    assert with_settings(changed, {"seed": 1}) == with_setting(options, "seed", "1")
    rows = dict(setting_rows(changed, SamplingDefaults(top_p=0.9)))
    assert (rows["top_k"], rows["top_p"], rows["seed"]) == ("3", "0.9 (the model's)", "random")
    assert rows["max_tokens"].startswith("99")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("heat", "1", "there is no setting heat"),
        ("min_trust", "0", "there is no setting min_trust"),
        ("seed", "0.5", "must be a whole number"),
        ("top_p", "nan", "top_p"),
        ("max_tokens", "0", "max_tokens"),
    ],
)
def test_what_cannot_be_set_is_named(name: str, value: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        with_setting(GenerationOptions(), name, value)
