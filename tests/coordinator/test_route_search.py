"""What was found holds as long as the state does in which it was looked for, and not a moment longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from coordinator.app import RunningCoordinator
from coordinator.keys import TICKET_DESK
from coordinator.policy.routing import NOTHING_AVOIDED, NOTHING_HELD, Avoided, Route
from coordinator.route_search import RouteSearch
from protocol.client_legs import ClientLeg
from protocol.control_messages import Heartbeat, SpanReport, SpanState
from protocol.errors import ContextExceededError, ModelLoadingError, ModelUnavailableError
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from protocol.rest import RouteRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import running_coordinator
from tests.support.scripted_worker import ScriptedWorker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually

WANTED = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=1, max_tokens=1)


async def test_a_route_is_looked_for_once_in_a_state_and_for_one_question(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            model = cluster.state.models[ModelName("tiny")]

            def found(avoided: Avoided = NOTHING_AVOIDED, exclude: frozenset[str] = frozenset()) -> Route:
                return search.found(model, exclude, avoided, NOTHING_HELD, WANTED)  # type: ignore[arg-type]

            before, state = found(), cluster.state
            (first,) = (hop.worker_id for hop in before.hops)
            around = found(Avoided(workers=frozenset({first})))
            without = found(exclude=frozenset({first}))
            assert found() is before, "nothing has changed"
            assert first not in {hop.worker_id for route in (around, without) for hop in route.hops}
            whole = {(first, BlockRange(0, 4)): 1e-9}
            assert search.found(model, frozenset(), NOTHING_AVOIDED, whole, WANTED) is not before
            for worker in workers:
                beat = Heartbeat(
                    n_sessions=50 if worker.worker_id == first else 0,
                    n_queued=0,
                    free_kv_bytes=10**8,
                    decode_s_per_block=0.001,
                    prefill_s_per_token_block=0.0,
                )
                await worker.send(beat)
            await eventually(lambda: found().hops[0].worker_id != first)
            assert cluster.state is not state


async def test_a_route_for_who_is_far_is_remembered_for_who_is_as_far(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4), (0, 4)):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            model = cluster.state.models[ModelName("tiny")]

            def found(**round_trips_s: float) -> Route:
                legs = tuple(ClientLeg(worker_id=WorkerId(w), round_trip_s=s) for w, s in round_trips_s.items())
                wanted = replace(WANTED, client_legs=legs)
                return search.found(model, frozenset(), NOTHING_AVOIDED, NOTHING_HELD, wanted)

            anywhere = found()
            (first,) = (hop.worker_id for hop in anywhere.hops)
            assert found(**{first: 0.001}) is anywhere, "near is as if nothing was said"
            assert found(**{"w-gone": 0.5}) is anywhere
            elsewhere = found(**{first: 0.040})
            assert first not in {hop.worker_id for hop in elsewhere.hops}
            assert found(**{"w-gone": 0.5, first: 0.041}) is elsewhere
            assert found() is anywhere


def wanting(n_tokens: int, **fields: object) -> RouteRequest:
    return RouteRequest(model=ModelName("tiny"), n_prompt_tokens=n_tokens - 1, max_tokens=1, **fields)  # type: ignore[arg-type]


async def told(coordinator: RunningCoordinator, *rooms_s: tuple[ScriptedWorker, int, float]) -> None:
    """Workers say how many positions they have room for, and what a token takes a block."""
    for worker, room, s in rooms_s:
        beat = Heartbeat(
            n_sessions=0,
            n_queued=0,
            free_kv_bytes=10**8,
            decode_s_per_block=s,
            prefill_s_per_token_block=0.0,
            longest_sessions={ModelName("tiny"): room},
        )
        await worker.send(beat)

    def all_heard() -> bool:
        beats = [coordinator.cluster.state.workers[worker.worker_id].heartbeat for worker, _, _ in rooms_s]
        return all(beat is not None and beat.longest_sessions for beat in beats)

    await eventually(all_heard)


async def test_routes_go_round_workers_that_a_session_is_too_long_for(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster, tiny = coordinator.cluster, ModelName("tiny")
        async with pinned_workers(coordinator, (0, 4), (0, 4), (2, 4)) as (small, large, part):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            rooms_s = ((small, 3, 0.05), (large, 100, 0.5), (part, 200, 0.001))
            await told(coordinator, *rooms_s)

            def route(wanted: RouteRequest, *exclude: WorkerId) -> list[WorkerId]:
                model = cluster.state.models[tiny]
                found = search.found(model, frozenset(exclude), NOTHING_AVOIDED, NOTHING_HELD, wanted)
                return [hop.worker_id for hop in found.hops]

            assert route(wanting(3)) == [small.worker_id, part.worker_id]
            assert route(wanting(4)) == [large.worker_id, part.worker_id]
            assert route(wanting(6), large.worker_id) == [small.worker_id, part.worker_id], "half of its blocks"
            with pytest.raises(ContextExceededError) as caught:
                route(wanting(1000))
            rooms = (
                f"200 on {part.worker_id}, for 100 on {large.worker_id}, for 3 on {small.worker_id}. Ask for fewer"
            )
            assert caught.value.message.startswith("1,000 positions, of prompt and answer, don't fit")
            assert f"3 of the workers that serve tiny, even with nothing else there: there is room for {rooms}" in (
                caught.value.message
            )
            with pytest.raises(ModelUnavailableError, match=r"7 positions, .* 1 of the workers"):
                route(wanting(7), large.worker_id)
            begun = SessionId("0" * 32)
            for excluded in ((), (small.worker_id,), (small.worker_id, large.worker_id, part.worker_id)):
                with pytest.raises(ContextExceededError, match=r"1,000 positions, .* 200 on"):
                    route(wanting(1000, continues=begun), *excluded)
            with pytest.raises(ModelUnavailableError) as waits:
                route(wanting(100, continues=begun), small.worker_id, large.worker_id)
            assert "positions" not in waits.value.message, "who has room is gone round for now"


async def test_a_generation_that_goes_on_waits_for_who_may_come_back_with_room(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4), (0, 4)) as (small, large):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            await told(coordinator, (small, 3, 0.05), (large, 100, 0.05))
            model = cluster.state.models[ModelName("tiny")]
            await large.socket.close()
            await eventually(lambda: not cluster.state.workers[large.worker_id].is_routable)
            with pytest.raises(ModelLoadingError, match="4 positions"):
                search.found(
                    model,
                    frozenset(),
                    NOTHING_AVOIDED,
                    NOTHING_HELD,
                    wanting(4, continues=SessionId("0" * 32)),
                )


async def test_a_floor_of_trust_that_nobody_reaches_is_the_reason_and_nothing_before_it(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4)) as (only,):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            model = cluster.state.models[ModelName("tiny")]

            def refusal(exclude: frozenset[WorkerId] = frozenset()) -> str:
                with pytest.raises(ModelUnavailableError) as caught:
                    search.found(model, exclude, NOTHING_AVOIDED, NOTHING_HELD, wanting(4, min_trust=0.9))
                return caught.value.message

            score = cluster.state.workers[only.worker_id].trust.score
            asked = "the request, or the limits of its API key, ask for a trust of 0.90, which leaves out 1 of"
            assert refusal().startswith(asked)
            assert f"{only.worker_id} has {score:.2f}" in refusal()
            assert "ask for less, or have an operator pin" in refusal()
            assert "excludes" not in refusal(), "it would have had a route"
            await only.send(SpanReport(epoch=1, spans=()))
            await eventually(lambda: not cluster.state.workers[only.worker_id].ready)
            assert "blocks 0:4 of tiny" in refusal(), "that is missing for everybody"


async def test_where_the_cheapest_way_through_part_of_a_worker_is_too_narrow_another_one_is_tried(
    tmp_path: Path,
) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4), (0, 4), (2, 4)) as (near, far, part):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            await told(coordinator, (near, 3, 0.05), (far, 5, 0.5), (part, 200, 0.001))
            model = cluster.state.models[ModelName("tiny")]

            def route(n_tokens: int) -> list[WorkerId]:
                found = search.found(model, frozenset(), NOTHING_AVOIDED, NOTHING_HELD, wanting(n_tokens))
                return [hop.worker_id for hop in found.hops]

            assert route(6) == [near.worker_id, part.worker_id], "half of the blocks of the quicker one"
            assert route(10) == [far.worker_id, part.worker_id], "which has room for 6 in half of its blocks"
            with pytest.raises(ContextExceededError):
                route(11)


async def test_a_session_too_long_for_who_is_there_waits_for_who_is_about_to_be(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster, tiny = coordinator.cluster, ModelName("tiny")
        async with pinned_workers(coordinator, (0, 4), (0, 4)) as (small, loading):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            await told(coordinator, (small, 3, 0.05))
            record = cluster.state.workers[loading.worker_id]
            (ready,) = record.reported

            async def says(state: SpanState) -> None:
                report = SpanReport(epoch=record.assignment.epoch, spans=(replace(ready, state=state),))
                await loading.send(report)
                await eventually(lambda: cluster.state.workers[loading.worker_id].reported[0].state == state)

            def route() -> list[WorkerId]:
                model = cluster.state.models[tiny]
                found = search.found(model, frozenset(), NOTHING_AVOIDED, NOTHING_HELD, wanting(4))
                return [hop.worker_id for hop in found.hops]

            await says("loading")
            with pytest.raises(ModelLoadingError, match=r"4 positions, .* others that hold it aren't ready"):
                route()
            await says("failed")
            with pytest.raises(ContextExceededError):
                route()
            await says("ready")
            assert route() == [loading.worker_id]


async def test_what_a_worker_had_room_for_counts_no_longer_once_it_holds_something_else(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster = coordinator.cluster
        async with pinned_workers(coordinator, (0, 4)) as (only,):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            await told(coordinator, (only, 3, 0.05))
            model, record = cluster.state.models[ModelName("tiny")], cluster.state.workers[only.worker_id]
            with pytest.raises(ContextExceededError):
                search.found(model, frozenset(), NOTHING_AVOIDED, NOTHING_HELD, wanting(4))
            (ready,) = record.reported
            report = SpanReport(epoch=record.assignment.epoch, spans=(replace(ready, note="room for 100"),))
            await only.send(report)
            await eventually(lambda: cluster.state.workers[only.worker_id].reported[0].note != ready.note)
            found = search.found(model, frozenset(), NOTHING_AVOIDED, NOTHING_HELD, wanting(4))
            assert [hop.worker_id for hop in found.hops] == [only.worker_id], "its next heartbeat says how many"
