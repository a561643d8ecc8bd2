"""Generations that wait: for blocks, for a coordinator that is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from client.results import Progress
from protocol.errors import (
    DeadlineExceededError,
    ErrorBody,
    ModelUnavailableError,
    NotFoundError,
    UnreachableError,
)
from protocol.frames import encode_frame
from protocol.ids import SessionId
from protocol.messages import Token
from tests.support.generating import ANSWER, Notices, Run, assert_whole, generated
from tests.support.scripted_cluster import DEADLINE_S, Script, scripted_cluster

OVERLOADED = ErrorBody(code="overloaded", message="12 of 12 sessions")
FINAL = Script(finish="length")


async def test_blocks_on_their_way_are_waited_for(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = replace(FINAL, answer=ANSWER)
        cluster.has_route.clear()
        run = Run(Progress(0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(generated(cluster, run=run))
            await cluster.until(lambda: any(request.wait_s > 0 for request in cluster.route_requests))
            assert run.notices == ["waiting: blocks 0:1 are loading"]
            cluster.has_route.set()
        assert_whole(run, cluster, failovers=0)
        assert [request.failure for request in cluster.route_requests] == [None, None]


async def test_blocks_that_nobody_will_hold_are_an_error_at_once(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.has_route.clear()
        cluster.no_route = ErrorBody(code="model_unavailable", message="blocks 3:5 are missing")
        with pytest.raises(ModelUnavailableError, match="3:5"):
            await generated(cluster)
        assert len(cluster.route_requests) == 1


@pytest.mark.parametrize("code", ["model_unavailable", "model_loading"])
async def test_after_a_failure_blocks_are_waited_for_whatever_is_said(tmp_path: Path, code: str) -> None:
    async with scripted_cluster(tmp_path) as cluster:

        async def lose_the_blocks() -> None:
            cluster.has_route.clear()

        cluster.no_route = ErrorBody(code=code, message="blocks 1:10 are missing", retry_after_s=0.1)
        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=lose_the_blocks, drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        run = Run(Progress(0.0))
        async with asyncio.TaskGroup() as group:
            group.create_task(generated(cluster, run=run))
            await cluster.until(lambda: any(request.wait_s > 0 for request in cluster.route_requests))
            cluster.has_route.set()
        assert_whole(run, cluster, failovers=1)
        tail = cluster.workers[1][0]
        assert [request.exclude for request in cluster.route_requests] == [(), (tail,), (), ()]
        assert run.notices == [
            f"worker {tail} went away after 4 tokens; going on by another route",
            "waiting: blocks 1:10 are missing",
        ]


async def test_a_wait_ends_with_the_deadline_and_says_what_was_waited_for(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.has_route.clear()
        with pytest.raises(DeadlineExceededError, match=r"1 s.*waiting: blocks 0:1 are loading"):
            await generated(cluster, timeout_s=1.0)


@pytest.mark.parametrize(
    ("script", "standing"),
    [
        (Script(answer=(), stop_short=True, has_room=False), "none of its workers has begun.*coord status"),
        (Script(answer=(), stop_short=True), "its prompt was being run"),
        (Script(answer=ANSWER[:2], stop_short=True), "tokens that had come: 2"),
    ],
)
async def test_a_deadline_says_how_far_it_came(script: Script, standing: str, tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = script
        with pytest.raises(DeadlineExceededError, match=rf"its 1 s.*; {standing}"):
            await generated(cluster, timeout_s=1.0)
        await cluster.until_closed("deadline")


async def test_a_coordinator_that_is_away_is_not_noticed_without_a_failure(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        stop = cluster.served[0].stop
        cluster.script = Script(answer=ANSWER[:-1], on_answered=stop, raw_at_end=last_token("s-1"))
        run = await generated(cluster)
        assert (run.result.token_ids, run.result.failovers) == (ANSWER, 0)
        assert len(cluster.route_requests) == 1


def last_token(session_id: str) -> bytes:
    token = Token(
        session_id=SessionId(session_id), index=len(ANSWER) - 1, token_id=ANSWER[-1], finish_reason="length"
    )
    return encode_frame(token)


async def test_a_worker_that_dies_while_the_coordinator_is_away_costs_only_time(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=cluster.served[0].stop, drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        run = Run(Progress(0.0))
        is_waiting = asyncio.Event()
        run.notices = Notices(lambda notice: is_waiting.set() if "waiting" in notice else None)
        async with asyncio.TaskGroup() as group:
            group.create_task(generated(cluster, run=run))
            await asyncio.wait_for(is_waiting.wait(), DEADLINE_S)
            await cluster.served[0].start()
        assert_whole(run, cluster, failovers=1)
        assert "no coordinator answers" in run.notices[1]


async def test_a_coordinator_that_restarts_before_the_first_route_is_waited_for(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = replace(FINAL, answer=ANSWER)
        run = Run(Progress(0.0))
        is_waiting = asyncio.Event()
        run.notices = Notices(lambda _notice: is_waiting.set())
        async with asyncio.TaskGroup() as group:
            group.create_task(generated(cluster, run=run, on_open=cluster.served[0].stop))
            await asyncio.wait_for(is_waiting.wait(), DEADLINE_S)
            await cluster.served[0].start()
        assert_whole(run, cluster, failovers=0)


async def test_without_a_coordinator_for_long_a_generation_that_never_began_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.failover.RESTART_GRACE_S", 0.3)
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(route_error=ErrorBody(code="unreachable", message="nobody"))
        with pytest.raises(UnreachableError, match="nobody"):
            await generated(cluster)
        assert len(cluster.route_requests) > 1


async def test_another_address_of_the_coordinator_is_gone_on_with(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path, n_coordinators=2) as cluster:
        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=cluster.served[0].stop, drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        run = await generated(cluster)
        assert_whole(run, cluster, failovers=1)
        assert len(run.notices) == 1


async def test_a_coordinator_that_forgot_the_session_is_asked_without_it(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:

        async def forget() -> None:
            cluster.known_sessions = frozenset()

        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=forget, drops_connection=True)]
        cluster.script = replace(FINAL, answer=ANSWER[4:])
        assert_whole(await generated(cluster), cluster, failovers=1)
        assert [request.continues for request in cluster.route_requests] == [None, "s-1", None]


async def test_a_model_that_was_removed_meanwhile_ends_it(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:

        async def remove() -> None:
            cluster.script = Script(route_error=ErrorBody(code="not_found", message="there is no model tiny"))

        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=remove, drops_connection=True)]
        run = Run(Progress(0.0))
        with pytest.raises(NotFoundError, match="no model tiny"):
            await generated(cluster, run=run)
        assert run.result.token_ids == ANSWER[:4]


async def test_cancelling_while_it_waits_leaves_nothing_open(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:

        async def lose_the_blocks() -> None:
            cluster.has_route.clear()

        cluster.attempts = [Script(answer=ANSWER[:4], on_answered=lose_the_blocks, ends_with=OVERLOADED)]
        run = Run(Progress(0.0))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(generated(cluster, run=run))
            await cluster.until(lambda: any(request.wait_s > 0 for request in cluster.route_requests))
            task.cancel()
        assert task.cancelled()
        assert run.result.finish_reason == "cancelled"
        assert len(cluster.seen) == 1
        first = cluster.seen[SessionId("s-1")]
        await cluster.until(lambda: len(first.closed) == 2)
