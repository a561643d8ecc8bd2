"""Whose workers and keys are, as it is written on the command line."""

from __future__ import annotations

import pytest

from coordinator.cli_owners import owner_label, whose
from protocol.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "label"),
    [("anna", "anna"), ("  anna ", "anna"), ("", ""), ("none", ""), ("None", ""), ("nonet", "nonet")],
)
def test_none_is_nobody_as_it_is_no_limit(text: str, label: str) -> None:
    assert owner_label(text) == label


@pytest.mark.parametrize(
    ("text", "words"), [("x" * 65, "at most 64 .* this one has 65"), ("a\nb", "not all of them printable")]
)
def test_what_is_no_label_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        owner_label(text)


def test_nobody_has_a_name_too() -> None:
    assert [whose("anna"), whose("")] == ["anna's", "nobody's in particular"]
