from __future__ import annotations

import json

from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_workers_are_filtered_and_one_that_is_not_there_is_named(here: Coord) -> None:
    filters = ("--in-state", "ready", "--model", "tiny", "--trust", "trusted", "--owner", "")
    assert json.loads(here("worker", "list", *filters, "--json")[1]) == {"workers": [], "next_cursor": None}
    assert "No workers yet" in here("worker", "list")[1]
    for command in ("show", "remove", "drain"):
        code, _, err = here("worker", command, "w-nobody")
        assert code == EXIT_USAGE
        assert "w-nobody" in err
