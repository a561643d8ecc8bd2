from __future__ import annotations

import json

import pytest

from protocol.exit_codes import EXIT_OK, EXIT_USAGE
from protocol.invites import invite_from_text
from tests.support.coord_process import Coord


def test_an_invite_is_made_listed_and_revoked(here: Coord) -> None:
    code, out, err = here("invite", "--uses", "2", "--name", "the shed", "--address", "https://10.9.8.7:7400")
    assert code == EXIT_OK, err
    invite = invite_from_text(out)
    assert invite.urls == ("https://10.9.8.7:7400",)
    assert "for 2 workers" in err
    assert out.strip() not in err
    assert (
        "No invite that is expired; `coord invite` makes one" in here("invite", "list", "--in-state", "expired")[2]
    )
    code, shown, _ = here("invite", "list", "--in-state", "open")
    assert (code, invite.invite_id in shown, "the shed" in shown, "0 of 2" in shown) == (EXIT_OK, True, True, True)
    assert here("invite", "revoke", invite.invite_id)[0] == EXIT_OK
    code, shown, _ = here("invite", "list", "--json")
    assert json.loads(shown)["invites"][0]["state"] == "revoked"
    code, _, err = here("invite", "revoke", "nosuch")
    assert code != EXIT_OK
    assert "coord invite list" in err


def test_of_a_coordinator_that_nobody_else_reaches_it_says_so(here: Coord) -> None:
    code, out, err = here("invite")
    assert (code, "warning: other machines can't reach" in err) == (EXIT_OK, True)
    assert invite_from_text(out).urls[0].startswith("https://127.0.0.1:")
    assert "1 invite" in here("status")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--expires", "5s"], "under 60 s"),
        (["--expires", "91d"], "90d"),
        (["--expires", "soon"], "--expires"),
        (["--uses", "0"], "--uses"),
        (["--address", "http://10.0.0.1"], "plain HTTP"),
        (["--name", "x" * 101], "at most 100"),
    ],
)
def test_bad_options_say_what_is_wrong(here: Coord, arguments: list[str], says: str) -> None:
    code, out, err = here("invite", *arguments)
    assert (code, out) == (EXIT_USAGE, "")
    assert says in err


def test_the_group_shows_its_commands(coord: Coord) -> None:
    code, out, _ = coord("invite", "--help")
    assert code == EXIT_OK
    assert all(command in out for command in ("create", "list", "revoke"))
