from __future__ import annotations

import json

from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_workers_are_filtered_and_one_that_is_not_there_is_named(here: Coord) -> None:
    filters = ("--in-state", "ready", "--model", "tiny", "--trust", "trusted", "--owner", "")
    assert json.loads(here("worker", "list", *filters, "--json")[1]) == {"workers": [], "next_cursor": None}
    assert "No workers yet" in here("worker", "list")[1]
    code, out, err = here("worker", "list", *filters)
    assert (code, out, "No worker is as asked" in err) == (0, "", True)
    for label in ("x" * 65, "a\nb"):
        code, _, err = here("worker", "owner", "w-nobody", label)
        assert (code, "the owner" in err) == (EXIT_USAGE, True)
    for command in ("show", "remove", "drain"):
        code, _, err = here("worker", command, "w-nobody")
        assert code == EXIT_USAGE
        assert "w-nobody" in err
