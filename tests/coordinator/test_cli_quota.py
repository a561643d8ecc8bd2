from __future__ import annotations

import json

import pytest

from coordinator.cli_quota import limits_change, limits_words, new_limits
from protocol.api_key import api_key_from_text
from protocol.errors import ConfigError
from protocol.exit_codes import EXIT_USAGE
from protocol.key_limits import KeyLimits
from tests.support.coord_process import Coord


def test_limits_are_given_changed_and_shown(here: Coord) -> None:
    code, out, _ = here("key", "create", "phone", "--limit", "tokens-per-min=10_000", "--limit", "priority=low")
    assert code == 0
    key_id = api_key_from_text(out).key_id
    code, _, err = here("key", "limits", key_id, "max-concurrent=2", "priority=none", "models=a,b")
    assert code == 0
    assert "tokens-per-min=10000 max-concurrent=2 models=a,b" in " ".join(err.split())
    quota = json.loads(here("quota", "show", key_id, "--json")[1])
    all_of_them = json.loads(here("quota", "show", "--json")[1])
    assert quota in all_of_them["quotas"]
    assert all_of_them["next_cursor"] is None
    assert quota["limits"] == {"tokens_per_min": 10_000, "max_concurrent": 2, "models": ["a", "b"]}
    assert "0 of 10,000 tokens/min" in here("quota", "show")[1]
    assert json.loads(here("quota", "usage", "--json")[1])["usage"] == []
    assert "--days 7" in here("quota", "usage")[2]
    assert "No worker gave anything" in here("quota", "contributions")[2]
    code, _, err = here("key", "limits", key_id, "tokens-per-min=0")
    assert code == EXIT_USAGE
    assert "tokens-per-min is 0; it can be 1 to 1,000,000,000,000, or none for no limit" in " ".join(err.split())
    assert here("key", "revoke", key_id)[0] == 0
    assert "revoked 20" in " ".join(here("quota", "show", key_id)[1].split())


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["tokens=5"], "'tokens=5' is no limit: write NAME=VALUE; the names are requests-per-min"),
        (["max-context"], "is no limit"),
        (["max-context=5", "max_context=6"], "is given twice"),
        (["max-context=many"], "max-context can be a whole number, or none for no limit, not 'many'"),
        (["min-trust=high"], "min-trust can be a number from 0 to 1, or none for no limit, not 'high'"),
        (["max-context=1"], "max-context is 1; it can be 2 to .*, or none for no limit"),
        (["priority=vip"], "priority can be high, normal, low, or none, not 'vip'"),
        (["pinned-ends=maybe"], "pinned-ends can be true, false"),
    ],
)
def test_what_is_no_limit_is_refused(given: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        limits_change(given)


def test_limits_read_as_they_are_written() -> None:
    limits = KeyLimits(requests_per_min=60, priority="high", models=("a", "b"), min_trust=0.5)
    assert new_limits(limits_words(limits).split()) == limits
    assert limits_words(KeyLimits()) == "none"
