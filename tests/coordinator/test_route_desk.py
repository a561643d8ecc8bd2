"""Going on by another route: whose session, what its tickets say, waiting for a route, going round failures."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from coordinator import earlier_sessions, route_desk, waiting_room
from coordinator.app import RunningCoordinator
from coordinator.policy.breakers import FIRST_OPEN_S
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import Assign, GenerationReport
from protocol.generation_rest import GenerationPage
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.messages import SharedPrefix
from protocol.rest import ErrorAnswer, HopFailure, RouteGrant, RouteRequest
from protocol.tickets import Ticket, verified_claims
from tests.coordinator.test_client_api import pinned_workers, ready
from tests.support.clocks import Clock
from tests.support.coordinators import (
    Answer,
    Http,
    ScriptedWorker,
    add_model,
    announcement,
    eventually,
    eventually_answered,
    http_session,
    joined_worker,
    key_of,
    running_coordinator,
)
from tests.support.postgres import PostgresServer

TINY = ModelName("tiny")


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        await add_model(running)
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "client")) as session:
        yield session


def wanted(**changes: object) -> RouteRequest:
    return RouteRequest(**({"model": TINY, "n_prompt_tokens": 3, "max_tokens": 5} | changes))  # type: ignore[arg-type]


async def ask(http: Http, **changes: object) -> Answer:
    return await http.ask("POST", "/v1/routes", wanted(**changes))


async def granted(http: Http, **changes: object) -> RouteGrant:
    answer = await ask(http, **changes)
    assert answer.status == 200, answer.body
    return answer.read(RouteGrant)


def code_of(answer: Answer) -> str:
    return answer.read(ErrorAnswer).error.code


# ------------------------------------------------------------------ going on


async def test_the_tickets_and_the_record_say_which_session_goes_on(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 2), (2, 4)) as workers:
        first = await granted(http)
        second = await granted(http, continues=first.session_id, failure=HopFailure(code="hop_lost"))
        assert second.session_id != first.session_id
        for hop, worker in zip(second.hops, workers, strict=True):
            key = bytes.fromhex(worker.grant.ticket_key)
            assert verified_claims(hop.ticket, Ticket, (key,), now_s=0.0).continues == first.session_id
        stored = await coordinator.repository.generation(second.session_id)
        assert stored is not None
        assert stored.continues == first.session_id
        before = await coordinator.repository.generation(first.session_id)
        assert before is not None
        assert before.continues is None


async def test_only_a_session_of_the_same_key_goes_on(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4)):
        mine = await granted(http)
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            made = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="another"))
            anothers = await ask(admin, continues=mine.session_id)
        async with http_session(coordinator, made.read(CreatedKey).key) as other:
            strangers = await ask(other, continues=mine.session_id)
        nobodys = await ask(http, continues=SessionId("0" * 32))
        assert {answer.status for answer in (anothers, strangers, nobodys)} == {404}
        assert anothers.body == strangers.body == nobodys.body, "nothing tells whether there is such a session"


async def test_what_is_no_sessions_id_is_answered_as_an_unknown_one_and_no_trouble_of_the_database(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    url = postgres_server.new_database()
    async with running_coordinator(tmp_path, database_url=url) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as http,
            pinned_workers(coordinator, (0, 4)),
        ):
            assert (await ask(http, continues=SessionId("a\0b"))).status == 400
            for no_id in ("a", "", "x" * 65, "☃"):
                assert (await ask(http, continues=SessionId(no_id))).status == 404
                prefix = SharedPrefix(session_id=SessionId(no_id), n_positions=1)
                assert (await ask(http, prefix=prefix)).status == 200
                assert coordinator.repository.problem == ""


async def test_a_session_whose_tickets_ran_out_does_not_go_on(tmp_path: Path) -> None:
    clock = Clock()
    async with running_coordinator(tmp_path, clock=clock) as coordinator:
        await add_model(coordinator)
        async with (
            http_session(coordinator, key_of(coordinator, "client")) as http,
            pinned_workers(coordinator, (0, 4)) as (worker,),
        ):
            first = await granted(http)
            clock.now_s += TICKET_LIFE_S + 1.0
            await worker.beat()
            assert (await ask(http, continues=first.session_id)).status == 404


# ------------------------------------------------------------------ what was run before


async def test_a_text_that_was_run_before_goes_where_it_was(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4), (0, 4)) as workers:
        others = tuple(worker.worker_id for worker in workers[:2])
        first = await granted(http, exclude=others)
        assert [hop.worker_id for hop in first.hops] == [workers[2].worker_id]
        prefix = SharedPrefix(session_id=first.session_id, n_positions=2)
        key = bytes.fromhex(workers[2].grant.ticket_key)
        for _ in range(3):
            (hop,) = (await granted(http, prefix=prefix)).hops
            assert hop.worker_id == workers[2].worker_id
            assert verified_claims(hop.ticket, Ticket, (key,), now_s=0.0).prefix == prefix
        (elsewhere,) = (await granted(http, prefix=prefix, exclude=(workers[2].worker_id,))).hops
        worker = next(worker for worker in workers if worker.worker_id == elsewhere.worker_id)
        key = bytes.fromhex(worker.grant.ticket_key)
        assert verified_claims(elsewhere.ticket, Ticket, (key,), now_s=0.0).prefix is None, "nothing is there"


async def test_a_text_of_another_key_or_of_nobody_is_passed_over(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 4)) as (worker,):
        mine = await granted(http)
        key = bytes.fromhex(worker.grant.ticket_key)
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            made = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="another"))
        async with http_session(coordinator, made.read(CreatedKey).key) as other:
            for client, session_id in ((other, mine.session_id), (http, SessionId("0" * 32))):
                prefix = SharedPrefix(session_id=session_id, n_positions=2)
                (hop,) = (await granted(client, prefix=prefix)).hops
                assert verified_claims(hop.ticket, Ticket, (key,), now_s=0.0).prefix is None


# ------------------------------------------------------------------ waiting


async def test_a_route_that_comes_up_is_answered_to_those_who_wait(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(granted(http, wait_s=20.0), name=f"waiting {i}") for i in range(5)]
        async with pinned_workers(coordinator, (0, 4)) as (worker,):
            async with asyncio.timeout(10):
                grants = await asyncio.gather(*waiting)
            assert {grant.hops[0].worker_id for grant in grants} == {worker.worker_id}
            assert len({grant.session_id for grant in grants}) == 5


async def test_the_wait_ends_with_the_newest_reason(coordinator: RunningCoordinator, http: Http) -> None:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    nobody = await ask(http, wait_s=0.3)
    assert 0.3 <= loop.time() - started_s < 5.0
    assert (nobody.status, code_of(nobody)) == (503, "model_unavailable")
    assert int(nobody.headers["Retry-After"]) >= 1
    said = announcement("https://127.0.0.1:7900", pinned_model=TINY, pinned_blocks=BlockRange(0, 4))
    async with joined_worker(coordinator, announce=said) as worker:
        assign = await worker.receive(Assign)
        while not assign.spans:
            assign = await worker.receive(Assign)
        await worker.hold(assign, "loading")
        await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
        loading = await ask(http, wait_s=0.1)
        assert (loading.status, code_of(loading)) == (503, "model_loading")
        assert "being loaded" in loading.read(ErrorAnswer).error.message


async def test_excluding_all_who_hold_blocks_is_no_loading(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4)) as (worker,):
        answer = await ask(http, exclude=(worker.worker_id,))
        assert (answer.status, code_of(answer)) == (503, "model_unavailable")


async def test_what_requests_exclude_is_not_remembered_beyond_the_workers_there_are(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 4)) as (worker,):
        tracemalloc.start()
        try:
            for i in range(20):
                strangers = (WorkerId(f"{i}-{j}".ljust(500, "x")) for j in range(999))
                answer = await ask(http, exclude=(worker.worker_id, *strangers))
                assert code_of(answer) == "model_unavailable"
            del answer
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] < 4_000_000, "of 10 MB that were sent"
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("wait_s", [-1.0, 31.0, float("nan")])
async def test_waits_that_are_none_are_refused(http: Http, wait_s: float) -> None:
    body = f'{{"model":"tiny","n_prompt_tokens":1,"max_tokens":1,"wait_s":{wait_s}}}'.encode()
    assert (await http.ask("POST", "/v1/routes", body)).status == 400


async def test_more_than_may_wait_are_sent_away_with_a_time(
    coordinator: RunningCoordinator, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_room, "MAX_WAITING_PER_KEY", 3)
    answers = await asyncio.gather(*(ask(http, wait_s=1.0) for _ in range(5)))
    assert sorted(code_of(answer) for answer in answers) == ["model_unavailable"] * 3 + ["overloaded"] * 2
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert code_of(await ask(http, wait_s=0.1)) == "model_unavailable", "the places are free again"


async def test_a_waiting_caller_that_hangs_up_leaves_its_place(
    coordinator: RunningCoordinator, http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_room, "MAX_WAITING_PER_KEY", 1)
    monkeypatch.setattr(waiting_room, "LOOK_S", 0.05)
    async with http_session(coordinator, key_of(coordinator, "client")) as other:
        with pytest.raises(TimeoutError):
            await other.ask("POST", "/v1/routes", wanted(wait_s=30.0), timeout=aiohttp.ClientTimeout(total=0.5))

    async def is_free() -> bool:
        return code_of(await ask(http, wait_s=0.01)) == "model_unavailable"

    async with asyncio.timeout(5):
        while not await is_free():
            pass


async def test_who_waits_when_the_coordinator_stops_is_told_so(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with running_coordinator(tmp_path) as coordinator:
            await add_model(coordinator)
            session = http_session(coordinator, key_of(coordinator, "client"))
            http = await session.__aenter__()
            waiting = tasks.create_task(ask(http, wait_s=30.0), name="waiting")
            await asyncio.sleep(0.2)  # it has to have arrived; nothing tells
        async with asyncio.timeout(3):
            answer = await waiting
        assert (answer.status, code_of(answer)) == (503, "draining")
        await session.__aexit__(None, None, None)


# ------------------------------------------------------------------ going round what failed


async def failed_three_times(http: Http, worker: WorkerId, *others: WorkerId) -> None:
    """Three sessions over `worker` (never over `others`) fail by its fault."""
    for _ in range(3):
        grant = await granted(http, exclude=others)
        assert worker in {hop.worker_id for hop in grant.hops}
        failure = HopFailure(worker_id=worker, code="hop_lost")
        await granted(http, continues=grant.session_id, failure=failure)


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
    coordinator: RunningCoordinator, http: Http, monkeypatch: pytest.MonkeyPatch
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
            monkeypatch.setattr(route_desk, "_now_s", lambda: asyncio.get_running_loop().time() + FIRST_OPEN_S)
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


async def test_a_generation_that_comes_to_its_end_clears_it(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        bad, good = workers
        await failed_three_times(http, bad.worker_id, good.worker_id)
        await finish(coordinator, bad, await granted(http, exclude=(good.worker_id,)))

        async def is_used() -> bool:
            return {(await granted(http)).hops[0].worker_id for _ in range(2)} != {good.worker_id}

        await bad.beat()
        if bad.worker_id < good.worker_id:  # of equals the first is taken
            assert await is_used()


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


async def test_after_a_stall_without_anybody_silent_the_next_route_goes_round_all_of_it(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with pinned_workers(coordinator, (0, 4), (0, 4)):
        grant = await granted(http)
        for _ in range(3):
            again = await granted(http, continues=grant.session_id, failure=HopFailure(code="stalled"))
            assert again.hops[0].worker_id != grant.hops[0].worker_id
            grant = again


async def test_a_stall_of_the_only_worker_leaves_it_to_it(coordinator: RunningCoordinator, http: Http) -> None:
    async with pinned_workers(coordinator, (0, 4)) as (worker,):
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
