from __future__ import annotations

import json

from protocol.exit_codes import EXIT_USAGE
from tests.support.coord_process import Coord


def test_settings_are_shown_changed_and_reset(here: Coord) -> None:
    code, _, err = here("settings", "set", "auto_quantize", "off")
    assert code == 0, err
    assert "auto_quantize is off" in err
    code, out, _ = here("settings", "show")
    assert code == 0
    assert "coord settings reset" in out
    found = {info["name"]: info for info in json.loads(here("settings", "show", "--json")[1])["settings"]}
    assert (found["auto_quantize"]["value"], found["auto_quantize"]["source"]) == (False, "stored")
    code, out, _ = here("settings", "reset", "auto_quantize", "--json")
    assert (json.loads(out)["value"], json.loads(out)["source"]) == (True, "default")


def test_what_cant_be_is_refused_before_anything_is_asked(here: Coord) -> None:
    for given, said in (
        (("set", "auto_quantize", "maybe"), "on or off"),
        (("set", "replan_margin", "nan"), "1.01 to 100"),
        (("set", "replan_margin", "-1"), "1.01 to 100"),
        (("set", "colour", "red"), "there are placement"),
        (("reset", "colour"), "there are placement"),
    ):
        code, _, err = here("settings", *given)
        assert code == EXIT_USAGE
        assert said in err
