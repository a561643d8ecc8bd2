from __future__ import annotations

import json
from pathlib import Path

from protocol.api_key import api_key_from_text
from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord, Served


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
    assert here("key", "create", "other", "--owner", "x" * 65)[0] == EXIT_USAGE
    assert "is nobody's in particular now" in here("key", "owner", made.key_id, "none")[2]
    assert "max-concurrent=3" in out
    code, out, err = here("key", "rotate", made.key_id, "--grace", "60s")
    rotated = api_key_from_text(out)
    assert (code, rotated.key_id, rotated.secret != made.secret) == (0, made.key_id, True)
    assert "old one is good until" in err
    assert "old one isn't good any more" in here("key", "rotate", made.key_id, "--grace", "0")[2]
    assert here("key", "rotate", made.key_id, "--grace", "60")[0] == EXIT_USAGE
    code, _, err = here("key", "limits", made.key_id, "models=nosuch")
    assert (code, "no model is served as nosuch now; there are: none" in " ".join(err.split())) == (0, True)
    listed = json.loads(here("key", "list", "--name", "TABLET", "--not-revoked", "--json")[1])["keys"]
    assert [key["key_id"] for key in listed] == [made.key_id]
    assert json.loads(here("key", "list", "--name", "tablet", "--revoked", "--json")[1])["keys"] == []
    assert here("key", "revoke", made.key_id)[0] == 0
    code, _, err = here("key", "limits", made.key_id, "max-concurrent=4")
    assert (code, "is revoked" in err) == (EXIT_USAGE, True)


def test_who_changes_the_key_in_a_state_folder_is_told_what_its_file_needs(
    coord: Coord, coordinator: Served, tmp_path: Path
) -> None:
    def there(*arguments: str) -> str:
        admin = ("--url", coordinator.url, "--admin-key-file", str(coordinator.state / "admin.key"))
        code, out, err = coord(*arguments, *admin, "--state", str(tmp_path))
        assert code == 0, err
        return out if arguments[1] == "create" else err

    kept, other = (api_key_from_text(there("key", "create", name)) for name in ("kept", "other"))
    file = tmp_path / "client.key"
    file.write_text(kept.text())
    assert "warning" not in there("key", "rotate", other.key_id)
    assert f"warning: {file} holds the old one: put the new one there" in there("key", "rotate", kept.key_id)
    assert f"warning: {file} holds it" in there("key", "revoke", kept.key_id)
    file.write_bytes(b"\xff")
    assert "warning" not in there("key", "revoke", kept.key_id)
