from __future__ import annotations

import json

from protocol.exit_codes import EXIT_USAGE
from protocol.handshake import checked_secret
from tests.support.coord_process import Coord


def test_a_rotation_prints_the_new_secret_once_and_show_does_not(here: Coord) -> None:
    code, out, err = here("secret", "rotate", "--grace", "2h")
    assert code == 0, err
    new = checked_secret(out.strip())
    assert new not in err
    assert "older ones admit until" in err
    code, out, _ = here("secret", "show")
    assert "an older one admits until" in out
    assert new not in out
    assert here("secret", "show", "--reveal")[1].strip() == new
    code, out, _ = here("secret", "rotate", "--grace", "0", "--json")
    assert json.loads(out)["secret"] != new
    shown = json.loads(here("secret", "show", "--json")[1])
    assert shown["previous_join_secrets"] == []
    assert here("secret", "rotate-signing-key")[0] == 0


def test_bad_input_is_refused_before_anything_is_asked(here: Coord) -> None:
    code, _, err = here("secret", "rotate", "--grace", "9d")
    assert code == EXIT_USAGE
    assert "8d" in err
    code, _, err = here("secret", "show", "--reveal", "--json")
    assert code == EXIT_USAGE
