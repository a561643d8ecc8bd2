from __future__ import annotations

import json

from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_nothing_is_known_of_nobody(here: Coord) -> None:
    code, out, _ = here("trust", "list")
    assert code == 0
    assert "No workers yet" in out
    assert json.loads(here("trust", "list", "--json")[1])["workers"] == []
    for command in (("show",), ("ban",), ("pardon",), ("unpin",), ("pin", "0.5")):
        code, _, err = here("trust", command[0], "w-nobody", *command[1:])
        assert code == EXIT_USAGE
        assert "w-nobody" in err


def test_a_score_is_between_0_and_1(here: Coord) -> None:
    for score in ("1.5", "-1"):
        code, _, err = here("trust", "pin", "w-nobody", score)
        assert code == EXIT_USAGE
        assert "between 0 and 1" in err
    code, _, err = here("trust", "ban", "w-nobody", "--reason", "x" * 501)
    assert code == EXIT_USAGE
    assert "501" in err
