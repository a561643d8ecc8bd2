from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from protocol.exit_codes import EXIT_USAGE
from tests.coordinator.packing_support import write_model
from tests.support.coord_process import Coord, Served


def test_a_model_is_added_listed_shown_and_removed(here: Coord, tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "model"))
    code, out, err = here("model", "add", "tiny", source)
    assert (code, out.split(":")[0]) == (0, "added tiny"), err
    assert "2 blocks" in out
    code, _, err = here("model", "add", "tiny", source)
    assert code == EXIT_USAGE
    assert "coord model remove tiny" in err
    assert "tiny" in here("model", "list")[1]
    shown = json.loads(here("model", "show", "tiny", "--json")[1])
    assert (shown["name"], shown["n_blocks"]) == ("tiny", 2)
    assert shown["state"] != "ready"
    code, out, _ = here("status")
    assert "nobody" in out
    code, out, _ = here("model", "remove", "tiny")
    assert (code, out.split(",")[0]) == (0, "removed tiny")
    assert json.loads(here("model", "list", "--json")[1]) == {"models": [], "next_cursor": None}
    code, _, err = here("model", "show", "tiny")
    assert code == EXIT_USAGE
    assert "tiny" in err


def test_replicas_are_asked_for_when_a_model_is_added_and_later(here: Coord, tmp_path: Path) -> None:
    source = str(write_model(tmp_path / "model"))
    code, _, err = here("model", "add", "tiny", source, "--replicas", "2")
    assert code == 0, err
    assert json.loads(here("model", "show", "tiny", "--json")[1])["n_replicas"] == 2
    code, out, err = here("model", "replicas", "tiny", "3")
    assert (code, out.splitlines()[0]) == (0, "tiny: 3 wanted of each block"), err
    assert json.loads(here("model", "replicas", "tiny", "4", "--json")[1])["n_replicas"] == 4
    assert "replicas" in here("model", "list")[1]
    assert json.loads(here("status", "--json")[1])["models"][0]["n_replicas"] == 4
    code, _, err = here("model", "replicas", "tiny", "0")
    assert code == EXIT_USAGE
    code, _, err = here("model", "replicas", "other", "2")
    assert code == EXIT_USAGE
    assert "other" in err
    assert here("model", "remove", "tiny")[0] == 0


def test_a_bad_source_or_name_adds_nothing(here: Coord, tmp_path: Path) -> None:
    code, _, err = here("model", "add", "../evil", str(tmp_path))
    assert code == EXIT_USAGE
    assert "can't be a model's name" in err
    code, _, err = here("model", "add", "empty", str(tmp_path))
    assert code != 0
    assert err.count("error: ") == 1
    assert json.loads(here("model", "list", "--json")[1]) == {"models": [], "next_cursor": None}


def test_models_are_added_on_the_coordinators_machine_only(
    coord: Coord, coordinator: Served, tmp_path: Path
) -> None:
    key_file = str(coordinator.state / "admin.key")
    where = ("--url", coordinator.url, "--admin-key-file", key_file, "--state", str(tmp_path / "other"))
    code, _, err = coord("model", "add", "tiny", str(tmp_path), *where)
    assert code == EXIT_USAGE
    assert "on the coordinator's machine" in err


def test_packages_for_packing_that_are_not_installed(
    here: Coord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "coordinator.packing", None)
    code, _, err = here("model", "add", "tiny", str(tmp_path))
    assert code == EXIT_USAGE
    assert "pip install '.[packing]' in Brigade's folder" in err
