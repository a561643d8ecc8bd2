"""Settings that are changed while a coordinator runs: what they mean for new keys."""

from __future__ import annotations

import pytest

from coordinator.policy.settings import setting_named, shown, with_default_limits, with_stored
from coordinator.policy.state import PolicySettings
from protocol.errors import InvalidRequestError
from protocol.key_limits import UNLIMITED, KeyLimits


def test_a_new_key_has_the_settings_limits_where_it_names_none() -> None:
    settings = PolicySettings(default_tokens_per_min=1000.0, default_max_concurrent=2.0)
    limits = with_default_limits(KeyLimits(max_concurrent=5, priority="low"), settings)
    assert limits == KeyLimits(max_concurrent=5, priority="low", tokens_per_min=1000)
    assert with_default_limits(UNLIMITED, PolicySettings()) == UNLIMITED


def test_what_was_allowed_together_is_in_force_after_a_restart() -> None:
    stored = {"lost_after_s": 2.5, "suspect_after_s": 2.0}  # the first alone contradicts the default of the other
    settings, unusable = with_stored(PolicySettings(), stored, ())
    assert unusable == ()
    assert (settings.lost_after_s, settings.suspect_after_s) == (2.5, 2.0)


def test_of_what_is_stored_only_what_cant_be_used_is_left_out() -> None:
    stored = {"replan": "never", "lost_after_s": 2.5, "suspect_after_s": 2.0}
    settings, unusable = with_stored(PolicySettings(), stored, ())
    assert len(unusable) == 1
    assert "never" in unusable[0]
    assert (settings.lost_after_s, settings.suspect_after_s) == (2.5, 2.0)


@pytest.mark.parametrize("value", [0.5, 2.5])
def test_a_limit_of_new_keys_is_a_whole_number(value: float) -> None:
    with pytest.raises(InvalidRequestError, match="a whole number from 0 to"):
        setting_named("default_max_concurrent").checked(value)


@pytest.mark.parametrize("text", ["1234567", "1000000000000", "0"])
def test_a_number_is_shown_as_it_was_written(text: str) -> None:
    assert shown(setting_named("default_tokens_per_min").read(text)) == text
