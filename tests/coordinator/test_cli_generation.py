from __future__ import annotations

import json

from tests.support.coord_process import Coord


def test_generations_are_listed_and_one_that_isnt_there_cant_be_cancelled(here: Coord) -> None:
    code, out, err = here("generation", "list", "--json")
    assert code == 0, err
    assert json.loads(out) == {"generations": [], "next_cursor": None}
    code, _, err = here("generation", "list", "--in-state", "running")
    assert (code, err) == (0, "No generation is as asked\n")
    assert "client generate PROMPT" in here("generation", "list")[2]
    code, _, err = here("generation", "cancel", "nosuch")
    assert code != 0
    assert "coord generation list" in err
