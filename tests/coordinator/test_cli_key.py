from __future__ import annotations

import json

from protocol.api_key import api_key_from_text
from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_a_key_is_shown_renamed_limited_and_rotated(here: Coord) -> None:
    made = api_key_from_text(here("key", "create", "phone")[1])
    assert here("key", "rename", made.key_id, "tablet")[0] == 0
    assert here("key", "limits", made.key_id, "max-concurrent=3")[0] == 0
    assert here("key", "owner", made.key_id, "anna")[0] == 0
    code, out, _ = here("key", "show", made.key_id)
    assert code == 0
    assert "tablet" in out
    assert "anna" in out
    assert here("key", "owner", made.key_id, "a\nb")[0] == EXIT_USAGE
    assert "max-concurrent=3" in out
    code, out, err = here("key", "rotate", made.key_id, "--grace", "60s")
    rotated = api_key_from_text(out)
    assert (code, rotated.key_id, rotated.secret != made.secret) == (0, made.key_id, True)
    assert "old one is good until" in err
    assert here("key", "rotate", made.key_id, "--grace", "60")[0] == EXIT_USAGE
    code, _, err = here("key", "limits", made.key_id, "models=nosuch")
    assert (code, "no model is served as nosuch now; there are: none" in " ".join(err.split())) == (0, True)
    listed = json.loads(here("key", "list", "--name", "TABLET", "--not-revoked", "--json")[1])["keys"]
    assert [key["key_id"] for key in listed] == [made.key_id]
    assert json.loads(here("key", "list", "--name", "tablet", "--revoked", "--json")[1])["keys"] == []
    assert here("key", "revoke", made.key_id)[0] == 0
    code, _, err = here("key", "limits", made.key_id, "max-concurrent=4")
    assert (code, "is revoked" in err) == (EXIT_USAGE, True)
