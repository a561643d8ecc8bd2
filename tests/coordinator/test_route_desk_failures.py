"""Routes go round workers and links that fail or stall, and come back to those that do better."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator import earlier_sessions, route_desk
from coordinator.app import RunningCoordinator
from coordinator.policy.breakers import FIRST_OPEN_S
from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import GenerationReport
from protocol.generation_rest import GenerationPage
from protocol.ids import BlockRange, WorkerId
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import HopFailure, RouteGrant
from tests.coordinator.test_client_api import pinned_workers, ready
from tests.support.clocks import Clock
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.route_asking import TINY, ask, coordinator, granted, http
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered

__all__ = ["coordinator", "http"]


@pytest.fixture
def breakers_s(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of breakers, which stands still: one opens for seconds, and that is no time on a busy machine.

    Who has it can't wait for a route: waits are measured by the same clock.
    """
    clock = Clock(1000.0)
    monkeypatch.setattr(route_desk, "_now_s", clock)
    return clock


async def failed_three_times(http: Http, worker: WorkerId, *others: WorkerId) -> None:
    """Three sessions over `worker` (never over `others`) fail by its fault."""
    for _ in range(3):
        grant = await granted(http, exclude=others)
        assert worker in {hop.worker_id for hop in grant.hops}
        failure = HopFailure(worker_id=worker, code="hop_lost")
        await granted(http, continues=grant.session_id, failure=failure)


@pytest.mark.usefixtures("breakers_s")
async def test_a_worker_that_fails_again_and_again_is_gone_round_and_shown(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        bad, good = (worker.worker_id for worker in workers)
        await failed_three_times(http, bad, good)
        for _ in range(3):
            assert [hop.worker_id for hop in (await granted(http)).hops] == [good]
        assert [hop.worker_id for hop in (await granted(http, exclude=(good,))).hops] == [bad], "no other way"
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
        reasons = {worker.worker_id: worker.reason for worker in status.workers}
        assert "it is avoided for" in reasons[bad]
        assert "avoided" not in reasons[good]


async def is_on_trial(admin: Http, worker_id: WorkerId) -> bool:
    """Whether a trial of it is under way, as operators are shown."""
    status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
    return "tried with one session" in {worker.worker_id: worker.reason for worker in status.workers}[worker_id]


async def test_a_request_that_a_quota_refuses_is_no_trial(
    coordinator: RunningCoordinator, http: Http, breakers_s: Clock
) -> None:
    async with (
        pinned_workers(coordinator, (0, 4), (0, 4)) as workers,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        bad, good = (worker.worker_id for worker in workers)
        limits = KeyLimits(requests_per_min=1)
        made = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="one", limits=limits))
        async with http_session(coordinator, made.read(CreatedKey).key) as limited:
            await granted(limited)
            await failed_three_times(http, bad, good)
            breakers_s.now_s += FIRST_OPEN_S
            assert (await ask(limited, exclude=(good,))).status == 429
        assert not await is_on_trial(admin, bad)
        await granted(http, exclude=(good,))
        assert await is_on_trial(admin, bad), "that one is"


async def finish(coordinator: RunningCoordinator, worker: ScriptedWorker, grant: RouteGrant) -> None:
    """The tail reports the generation's end."""
    await worker.send(
        GenerationReport(session_id=grant.session_id, n_prompt_tokens=3, n_completion_tokens=5, outcome="length")
    )

    async def is_finished() -> bool:
        stored = await coordinator.repository.generation(grant.session_id)
        return stored is not None and stored.finished_at is not None

    await eventually_answered(is_finished)


@pytest.mark.usefixtures("breakers_s")
async def test_a_generation_that_comes_to_its_end_clears_it(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        bad, good = sorted(workers, key=lambda worker: worker.worker_id)
        await failed_three_times(http, bad.worker_id, good.worker_id)
        assert (await granted(http)).hops[0].worker_id == good.worker_id
        await finish(coordinator, bad, await granted(http, exclude=(good.worker_id,)))

        async def is_used() -> bool:
            return (await granted(http)).hops[0].worker_id == bad.worker_id  # of equals the first is taken

        await eventually_answered(is_used)


async def test_a_stranger_to_the_route_cant_be_blamed(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        first, second = sorted(worker.worker_id for worker in workers)
        for _ in range(5):
            grant = await granted(http, exclude=(second,))
            failure = HopFailure(worker_id=second, code="hop_lost")
            await granted(http, continues=grant.session_id, failure=failure)
        assert [hop.worker_id for hop in (await granted(http, exclude=(first,))).hops] == [second]
        assert [hop.worker_id for hop in (await granted(http)).hops] == [first]


async def later_attempts_fail(http: Http, worker: WorkerId, other: WorkerId, *, goes_on: bool) -> RouteGrant:
    """A session over `other`, three after it that fail at `worker`, and one more over `other`; the first of them.

    All go on from the first, or, unless `goes_on`, the three from none.
    """
    first, failure = await granted(http, exclude=(worker,)), None
    for _ in range(3):
        going_on = {"continues": first.session_id, "failure": failure} if goes_on else {}
        later = await granted(http, exclude=(other,), **going_on)
        assert [hop.worker_id for hop in later.hops] == [worker]
        failure = HopFailure(worker_id=worker, code="hop_lost", session_id=later.session_id)
        if not goes_on:
            await granted(http, exclude=(worker,), continues=first.session_id, failure=failure)
    await granted(http, exclude=(worker,), continues=first.session_id, failure=failure)
    return first


async def shown(coordinator: RunningCoordinator, worker_id: WorkerId) -> tuple[str, GenerationPage]:
    """What operators are told of a worker, and which generations run."""
    async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
        status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
        running = (await admin.ask("GET", "/admin/v1/generations?state=running")).read(GenerationPage)
    return {worker.worker_id: worker.reason for worker in status.workers}[worker_id], running


@pytest.mark.usefixtures("breakers_s")
async def test_later_attempts_that_failed_count_though_an_earlier_session_is_continued(
    coordinator: RunningCoordinator, http: Http
) -> None:
    """No worker has heard of them, so that what is kept is the earlier one's, whose route was another."""
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        bad, good = (worker.worker_id for worker in workers)
        await later_attempts_fail(http, bad, good, goes_on=True)
        reason, running = await shown(coordinator, bad)
        assert "it is avoided for" in reason
        (last,) = running.generations
        assert [hop.worker_id for hop in last.hops] == [good], "those that failed run no more"


async def test_a_session_that_does_not_go_on_from_the_continued_one_is_not_blamed_on_anybody(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        first, second = (worker.worker_id for worker in workers)
        await later_attempts_fail(http, first, second, goes_on=False)
        reason, running = await shown(coordinator, first)
        assert "avoided" not in reason
        on_first = [one for one in running.generations if one.hops[0].worker_id == first]
        assert len(on_first) == 3, "they run on"


async def test_after_a_stall_the_silent_are_left_out(tmp_path: Path) -> None:
    clock = Clock()
    async with running_coordinator(tmp_path, clock=clock, suspect_after_s=60.0, lost_after_s=90.0) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as http,
            pinned_workers(coordinator, (0, 4), (0, 4)) as workers,
        ):
            silent, lively = sorted(workers, key=lambda worker: worker.worker_id)
            grant = await granted(http, exclude=(lively.worker_id,))
            for _ in range(2):  # each a step that is no clock that was set
                clock.now_s += earlier_sessions.SILENT_S / 2 + 0.1
                await eventually(lambda: coordinator.cluster.state.looked_s == clock.now_s)
            seen = coordinator.cluster.state.workers[lively.worker_id].seen_s
            await lively.beat()
            await eventually(lambda: coordinator.cluster.state.workers[lively.worker_id].seen_s > seen)
            stalled = HopFailure(code="stalled")
            again = await granted(http, continues=grant.session_id, failure=stalled)
            assert [hop.worker_id for hop in again.hops] == [lively.worker_id]
            only = await ask(
                http, continues=grant.session_id, failure=stalled, exclude=(lively.worker_id,), wait_s=0.1
            )
            assert only.status == 503
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(
                    granted(
                        http,
                        continues=grant.session_id,
                        failure=stalled,
                        exclude=(lively.worker_id,),
                        wait_s=10.0,
                    ),
                    name="waiting",
                )
                await silent.beat()
            assert [hop.worker_id for hop in waiting.result().hops] == [silent.worker_id], "it was heard again"


@asynccontextmanager
async def never_silent(
    tmp_path: Path, *ranges: tuple[int, int]
) -> AsyncIterator[tuple[Http, list[ScriptedWorker]]]:
    """Asking a coordinator whose clock stands still for routes over these workers."""
    async with running_coordinator(tmp_path, clock=Clock()) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as http,
            pinned_workers(coordinator, *ranges) as workers,
        ):
            yield http, workers


async def test_after_a_stall_without_anybody_silent_the_next_route_goes_round_all_of_it(tmp_path: Path) -> None:
    async with never_silent(tmp_path, (0, 4), (0, 4)) as (http, _):
        grant = await granted(http)
        for _ in range(3):
            again = await granted(http, continues=grant.session_id, failure=HopFailure(code="stalled"))
            assert again.hops[0].worker_id != grant.hops[0].worker_id
            grant = again


async def test_a_stall_of_the_only_worker_leaves_it_to_it(tmp_path: Path) -> None:
    async with never_silent(tmp_path, (0, 4)) as (http, (worker,)):
        grant = await granted(http)
        again = await granted(http, continues=grant.session_id, failure=HopFailure(code="stalled"))
        assert [hop.worker_id for hop in again.hops] == [worker.worker_id]


async def test_a_worker_gone_round_becomes_ready_for_those_who_wait(
    coordinator: RunningCoordinator, http: Http
) -> None:
    said = announcement("https://127.0.0.1:7901", pinned_model=TINY, pinned_blocks=BlockRange(0, 4))
    async with pinned_workers(coordinator, (0, 4)) as (first,), asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(granted(http, exclude=(first.worker_id,), wait_s=20.0), name="waiting")
        async with joined_worker(coordinator, announce=said) as second:
            await ready(second)
            assert (await waiting).hops[0].worker_id == second.worker_id
