"""Going on by another route: whose session, what its tickets say, what was run before, waiting for a route."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from pathlib import Path

import aiohttp
import pytest

from coordinator import waiting_room
from coordinator.app import RunningCoordinator
from coordinator.keys import ROUTE_DESK
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.control_messages import Assign
from protocol.ids import BlockRange, SessionId, WorkerId
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.messages import SharedPrefix
from protocol.rest import ErrorAnswer, HopFailure
from protocol.tickets import Ticket, verified_claims
from tests.coordinator.test_client_api import pinned_workers
from tests.support.clocks import Clock
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.postgres import PostgresServer
from tests.support.route_asking import TINY, ask, code_of, coordinator, granted, http, wanted
from tests.support.scripted_worker import announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered

__all__ = ["coordinator", "http"]


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


async def test_a_wait_for_blocks_on_their_way_ends_as_soon_as_they_no_longer_are(
    coordinator: RunningCoordinator, http: Http
) -> None:
    said = announcement("https://127.0.0.1:7900", pinned_model=TINY, pinned_blocks=BlockRange(0, 4))
    async with joined_worker(coordinator, announce=said) as worker, asyncio.TaskGroup() as tasks:
        assign = await worker.receive(Assign)
        while not assign.spans:
            assign = await worker.receive(Assign)
        await worker.hold(assign, "loading")
        await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
        waiting = tasks.create_task(ask(http, wait_s=30.0), name="waiting")
        await eventually(lambda: coordinator.application[ROUTE_DESK].n_waiting == 1)
        await worker.hold(assign, "failed")
        async with asyncio.timeout(10):
            answer = await waiting
        assert (answer.status, code_of(answer)) == (503, "model_unavailable")


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
    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(granted(http, wait_s=30.0), name=f"waiting {i}") for i in range(3)]
        await eventually(lambda: coordinator.application[ROUTE_DESK].n_waiting == 3)
        answers = await asyncio.gather(*(ask(http, wait_s=30.0) for _ in range(2)))
        async with pinned_workers(coordinator, (0, 4)) as (worker,):
            await asyncio.wait(waiting)
            again = await ask(http, wait_s=0.1, exclude=(worker.worker_id,))
    assert [code_of(answer) for answer in answers] == ["overloaded"] * 2
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    assert code_of(again) == "model_unavailable", "the places are free again"


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

    await eventually_answered(is_free)


async def test_who_waits_when_the_coordinator_stops_is_told_so(tmp_path: Path) -> None:
    async with asyncio.TaskGroup() as tasks:
        async with running_coordinator(tmp_path) as coordinator:
            await add_model(coordinator)
            session = http_session(coordinator, key_of(coordinator, "client"))
            http = await session.__aenter__()
            waiting = tasks.create_task(ask(http, wait_s=30.0), name="waiting")
            await eventually(lambda: coordinator.application[ROUTE_DESK].n_waiting)
        async with asyncio.timeout(10):
            answer = await waiting
        assert (answer.status, code_of(answer)) == (503, "draining")
        await session.__aexit__(None, None, None)
