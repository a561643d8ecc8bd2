from __future__ import annotations

import math

import msgspec
import pytest

from protocol.codec import decode_message, encode_message
from protocol.compatibility import understood_by
from protocol.errors import ProtocolError
from protocol.ids import SessionId
from protocol.messages import DataMessage, SessionOpened
from protocol.prompt_cost import PromptCost

OPENED = SessionOpened(session_id=SessionId("s"), prompt_costs=(PromptCost(0.008, 0.75e-3, 0.55e-6),))


def test_a_hop_of_an_older_version_is_told_nothing_of_it() -> None:
    assert understood_by(OPENED, "1.1") == SessionOpened(session_id=SessionId("s"))


@pytest.mark.parametrize("seconds", [-1e-9, math.nan, math.inf, 1.1e6])
@pytest.mark.parametrize("name", ["base", "per_token", "per_pair"])
def test_what_no_step_can_take_is_refused(name: str, seconds: float) -> None:
    cost = msgspec.structs.replace(OPENED.prompt_costs[0], **{name: seconds})
    data = encode_message(msgspec.structs.replace(OPENED, prompt_costs=(cost,)))
    with pytest.raises(ProtocolError):
        decode_message(data, DataMessage)
