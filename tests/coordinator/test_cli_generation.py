from __future__ import annotations

import json

from tests.support.coord_process import Coord


def test_generations_are_listed_and_one_that_isnt_there_cant_be_cancelled(here: Coord) -> None:
    code, out, err = here("generation", "list", "--json")
    assert code == 0, err
    assert json.loads(out) == []
    code, out, _ = here("generation", "list", "--in-state", "running")
    assert (code, "tokens out" in out) == (0, True)
    code, _, err = here("generation", "cancel", "nosuch")
    assert code != 0
    assert "coord generation list" in err
