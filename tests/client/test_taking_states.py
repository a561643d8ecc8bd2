from __future__ import annotations

import pytest

from client.taking_states import check_granted
from protocol.errors import ProtocolError
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.rest import RouteGrant, RouteHop


@pytest.mark.parametrize("granted", [(0, 4), (1, 4), (0, 3), (2, 3)])
def test_a_route_over_other_blocks_is_never_sent_anything(granted: tuple[int, int]) -> None:
    """An older coordinator passes over that the generation is private, and grants a route over all blocks."""
    hop = RouteHop(
        worker_id=WorkerId("w-1"), url="https://w:1", blocks=BlockRange(*granted), precision="float32", ticket="t"
    )
    grant = RouteGrant(
        session_id=SessionId("s"),
        model=ModelName("m"),
        revision=Revision("r"),
        hops=(hop,),
        attach_ticket="t",
        expires_in_s=9.0,
    )
    with pytest.raises(ProtocolError, match=r"over blocks 1:3 was asked for, .* granted one over .* older version"):
        check_granted(grant, BlockRange(1, 3))
