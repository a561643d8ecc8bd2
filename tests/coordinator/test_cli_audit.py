from __future__ import annotations

import json

from protocol.api_key import api_key_from_text
from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_the_audit_log_is_shown_with_what_changed(here: Coord) -> None:
    key = api_key_from_text(here("key", "create", "watched")[1])
    here("key", "rename", key.key_id, "renamed")
    code, out, _ = here("audit", "--subject", key.key_id, "--hours", "1")
    assert code == 0
    assert 'name: "watched" -> "renamed"' in out
    assert "the newest 1; --lines shows more" in here("audit", "--lines", "1")[2]
    assert "newest" not in here("audit", "--subject", key.key_id)[2]
    entries = json.loads(here("audit", "--action", "key_renamed", "--lines", "1", "--json")[1])["entries"]
    assert [(entry["subject"], entry["after"]["name"]) for entry in entries] == [(key.key_id, "renamed")]
    assert entries[0]["who"].startswith("key:")
    assert json.loads(here("audit", "--who", "key:nobody", "--json")[1])["entries"] == []
    assert "no line is as asked" in here("audit", "--who", "key:nobody")[2]
    code, out, err = here("audit", "--action", "nosuch", "--json")
    assert (code, json.loads(out)["entries"]) == (0, [])
    assert "no line is of the action nosuch; the log has" in " ".join(err.split())
    assert "key_renamed" in err
    for given in (("--who", "anna"), ("--hours", "1e300"), ("--hours", "nan"), ("--lines", "0")):
        code, out, err = here("audit", *given)
        assert (code, out) == (EXIT_USAGE, ""), given
        assert given[0].lstrip("-") in err
