from __future__ import annotations

import json

from coordinator.cli_assignment import _preview, pin_text
from coordinator.cli_output import console
from protocol.assignment_rest import AssignmentPreview, HolderChange, PinInfo, SpeedChange
from protocol.control_messages import SpanAssignment
from protocol.exit_codes import EXIT_USAGE
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.plan_rest import ModelledSpeed
from tests.support.coord_process import Coord

PIN = PinInfo(model=ModelName("m"), blocks=BlockRange(0, 3), by="k-1", reason="why not")


def test_nobody_holds_anything_and_bad_input_says_so(here: Coord) -> None:
    assert "No workers yet" in here("assignment", "show")[1]
    assert json.loads(here("assignment", "show", "--json")[1]) == {"assignments": [], "next_cursor": None}
    for given, said in (
        (("pin", "w-nobody", "m", "0:3"), "w-nobody"),
        (("unpin", "w-nobody"), "w-nobody"),
        (("pin", "w-nobody", "m", "3:0"), "3:0"),
        (("pin", "w-nobody", "../m", "0:3"), "model's name"),
        (("preview", "w-nobody", "m", "0:3"), "w-nobody"),
        (("move", "m", "0:3", "--from", "w-nobody", "--to", "w-other"), "w-nobody"),
        (("pin", "w-nobody", "m", "0:3", "--reason", "x" * 501), "501"),
    ):
        code, _, err = here("assignment", *given)
        assert code == EXIT_USAGE, given
        assert said in err


def test_a_preview_is_shown_with_speeds_memory_and_what_speaks_against_it() -> None:
    span = SpanAssignment(model=ModelName("m"), revision=Revision("r"), blocks=BlockRange(0, 3))
    speed = ModelledSpeed(one_stream_tokens_per_s=2.0, many_streams_tokens_per_s=8.0)
    found = AssignmentPreview(
        worker_id=WorkerId("w-a"),
        pin=PIN,
        needed_bytes=2**20,
        capacity_bytes=2**30,
        models=(SpeedChange(model=ModelName("m"), now=speed, then=None),),
        changes=(HolderChange(worker_id=WorkerId("w-a"), hostname="\x1b[31mevil", now=(), then=(span,)),),
        refusal="it is too big",
        loses="blocks 3:4 would be lost",
    )
    out = console()
    with out.capture() as captured:
        out.print(_preview(found), soft_wrap=True)
    text = captured.get()
    for said in ("1.0 MB needed", "2.0 tokens/s", "not all blocks are held", "m 0:3", "too big", "--force", "3:4"):
        assert said in text
    assert "\x1b[31mevil" not in text
    assert pin_text(PIN) == "is pinned to blocks 0:3 of m by k-1: why not"
