from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from client.failover import ROUTE_WAIT_S, AttemptFailed, Failover, after_failure
from client.route_finder import RouteFinder, WantedRoute
from protocol.errors import ErrorBody, ForbiddenError, HopLostError, QuotaExceededError
from protocol.exit_codes import EXIT_QUOTA
from protocol.ids import ModelName, SessionId, WorkerId
from protocol.pinned_http import pinned_session
from protocol.rest import HopFailure, RouteGrant
from tests.support.scripted_cluster import Script, ScriptedCluster, scripted_cluster
from tests.support.waiting import eventually

WANTED = WantedRoute(model=ModelName("tiny"), n_prompt_tokens=7, max_tokens=3)
WORKER = WorkerId("w-" + "a" * 26)
FAILURE = HopFailure(worker_id=WORKER, noticed_by=WORKER, code="hop_lost")


async def found(
    cluster: ScriptedCluster, known: Failover, notices: list[str] | None = None, wanted: WantedRoute = WANTED
) -> RouteGrant:
    notices = [] if notices is None else notices
    async with pinned_session(cluster.url, cluster.api_key) as coordinator:
        finder = RouteFinder(coordinator, random.Random(1), on_notice=notices.append)
        return await finder.route(wanted, known)


def failed_now() -> Failover:
    return after_failure(
        Failover(),
        AttemptFailed(HopLostError("gone"), FAILURE),
        session_id=SessionId("s-0"),
        has_been_heard=True,
        n_new_tokens=0,
        now_s=asyncio.get_running_loop().time(),
    )


async def test_asks_for_the_rest_and_says_what_failed(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        grant = await found(cluster, failed_now())
        assert grant.session_id == "s-1"
        (asked,) = cluster.route_requests
        assert (asked.model, asked.n_prompt_tokens, asked.max_tokens) == ("tiny", 7, 3)
        assert (asked.continues, asked.failure, asked.exclude) == ("s-0", FAILURE, (WORKER,))
        assert asked.wait_s == 0.0


async def test_who_may_see_the_tokens_is_asked_for(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        await found(cluster, Failover(), wanted=replace(WANTED, min_trust=0.75, pinned_ends=True))
        (asked,) = cluster.route_requests
        assert (asked.min_trust, asked.pinned_ends) == (0.75, True)


async def test_looks_first_and_lets_the_coordinator_wait_then(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster, asyncio.TaskGroup() as group:
        cluster.has_route.clear()
        notices: list[str] = []
        task = group.create_task(found(cluster, failed_now(), notices))
        await cluster.until(lambda: len(cluster.route_requests) == 3)
        cluster.has_route.set()
        assert (await task).session_id == "s-3"
        assert [asked.wait_s for asked in cluster.route_requests] == [0.0, 0.0, ROUTE_WAIT_S]
        assert [asked.exclude for asked in cluster.route_requests] == [(WORKER,), (), ()]
        assert {asked.failure for asked in cluster.route_requests} == {FAILURE}
        assert notices == ["waiting: blocks 0:1 are loading"]


async def test_what_no_wait_helps_against_is_raised(tmp_path: Path) -> None:
    async with scripted_cluster(tmp_path) as cluster:
        cluster.script = Script(route_error=ErrorBody(code="forbidden", message="the key is revoked"))
        with pytest.raises(ForbiddenError, match="revoked"):
            await found(cluster, failed_now())
        assert len(cluster.route_requests) == 1


async def test_a_limit_that_is_used_up_is_waited_for_only_if_that_is_wanted(tmp_path: Path) -> None:
    used_up = ErrorBody(code="quota_exceeded", message="tokens/min: 12 of 10 would be used", retry_after_s=0.01)
    async with scripted_cluster(tmp_path) as cluster, asyncio.TaskGroup() as group:
        cluster.script = Script(route_error=used_up)
        with pytest.raises(QuotaExceededError, match="12 of 10") as caught:
            await found(cluster, Failover())
        assert (caught.value.exit_code, caught.value.retry_after_s) == (EXIT_QUOTA, 0.01)
        notices: list[str] = []
        task = group.create_task(found(cluster, Failover(), notices, replace(WANTED, waits_for_quota=True)))
        await eventually(lambda: len(cluster.route_requests) >= 3)
        cluster.script = Script()
        await task
        assert set(notices) == {"waiting: tokens/min: 12 of 10 would be used"}
