"""Which generations run: of those that go on by another route, the last session alone."""

from __future__ import annotations

from coordinator.running_generations import RunningGenerations
from protocol.ids import BlockRange, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.rest import HopFailure, RouteGrant, RouteHop, RouteRequest

A, B, C, D = map(SessionId, "abcd")


def take(
    running: RunningGenerations, session_id: SessionId, *, continues: SessionId | None, failed: SessionId
) -> None:
    """Another session, by a client that says which one failed."""
    hop = RouteHop(worker_id=WorkerId("w"), url="", blocks=BlockRange(0, 1), precision="float32", ticket="")
    grant = RouteGrant(
        session_id=session_id,
        model=ModelName("m"),
        revision=Revision("r"),
        hops=(hop,),
        attach_ticket="",
        expires_in_s=1.0,
    )
    failure = HopFailure(code="hop_lost", session_id=failed)
    wanted = RouteRequest(model=grant.model, n_prompt_tokens=1, max_tokens=1, continues=continues, failure=failure)
    running.take(grant, wanted, KeyId("k"), now_s=0.0)


def sessions(running: RunningGenerations) -> list[SessionId]:
    return [one.session_id for one in running.newest(10)]


def test_a_later_attempt_that_failed_runs_no_more() -> None:
    running = RunningGenerations()
    take(running, A, continues=None, failed=D)
    take(running, B, continues=A, failed=A)
    take(running, C, continues=A, failed=B)
    assert sessions(running) == [C]


def test_a_session_of_another_generation_that_is_named_runs_on() -> None:
    running = RunningGenerations()
    take(running, A, continues=None, failed=D)
    take(running, B, continues=None, failed=D)
    take(running, C, continues=A, failed=B)
    assert sessions(running) == [C, B]
