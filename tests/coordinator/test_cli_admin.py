from __future__ import annotations

import json
from pathlib import Path

from protocol.api_key import api_key_from_text
from protocol.exit_codes import EXIT_AUTH, EXIT_UNREACHABLE, EXIT_USAGE
from tests.support.coord_process import Coord, Served


def test_status(here: Coord, coordinator: Served) -> None:
    code, out, _ = here("status")
    assert code == 0
    assert coordinator.url in out
    assert "No workers yet: worker join" in out
    code, out, _ = here("status", "--json")
    assert json.loads(out)["coordinator_id"] == (coordinator.state / "coordinator-id").read_text().strip()


def test_a_plan(here: Coord) -> None:
    code, out, _ = here("plan")
    assert code == 0
    assert "No models yet" in out
    assert json.loads(here("plan", "--placement", "many-streams", "--json")[1])["placement"] == "many-streams"


def test_keys_are_made_used_and_revoked(here: Coord, coord: Coord, coordinator: Served, tmp_path: Path) -> None:
    code, out, err = here("key", "create", "laptop", "--kind", "admin")
    key = api_key_from_text(out)
    assert (code, key.kind) == (0, "admin")
    assert "only this once" in err
    file = tmp_path / "laptop.key"
    file.write_text(out)
    remote = ("--url", coordinator.url, "--admin-key-file", str(file))
    assert coord("status", *remote)[0] == 0
    listed = json.loads(here("key", "list", "--json")[1])["keys"]
    assert {"laptop", "first admin key", "first client key"} <= {entry["name"] for entry in listed}
    assert key.secret not in here("key", "list")[1]
    assert here("key", "revoke", key.key_id)[0] == 0
    code, _, err = coord("status", *remote)
    assert code == EXIT_AUTH
    assert key.secret not in err
    assert here("key", "revoke", "00000000")[0] == EXIT_USAGE


def test_a_clients_key_is_no_admins(coord: Coord, coordinator: Served) -> None:
    key_file = str(coordinator.state / "client.key")
    assert coord("status", "--url", coordinator.url, "--admin-key-file", key_file)[0] == EXIT_AUTH


def test_nobody_answers(coord: Coord, coordinator: Served, tmp_path: Path) -> None:
    code, _, err = coord("status", "--state", str(tmp_path))
    assert code == EXIT_UNREACHABLE
    assert "coord serve" in err
    key_file = str(coordinator.state / "admin.key")
    code, _, err = coord("status", "--url", "https://127.0.0.1:1", "--admin-key-file", key_file)
    assert code == EXIT_UNREACHABLE
    assert "https://127.0.0.1:1" in err
    assert err.count("\n") == 1
