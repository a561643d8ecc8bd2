"""What was found holds as long as the state does in which it was looked for, and not a moment longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.keys import TICKET_DESK
from coordinator.policy.routing import NOTHING_AVOIDED, NOTHING_HELD, Avoided, Route
from coordinator.route_search import RouteSearch
from protocol.control_messages import Heartbeat
from protocol.errors import ContextExceededError, ModelUnavailableError
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from protocol.rest import RouteRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import add_model, eventually, running_coordinator

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


def wanting(n_tokens: int, **fields: object) -> RouteRequest:
    return RouteRequest(model=ModelName("tiny"), n_prompt_tokens=n_tokens - 1, max_tokens=1, **fields)  # type: ignore[arg-type]


async def test_routes_go_round_workers_that_a_session_is_too_long_for(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        cluster, tiny = coordinator.cluster, ModelName("tiny")
        async with pinned_workers(coordinator, (0, 4), (0, 4), (2, 4)) as (small, large, part):
            search = RouteSearch(cluster, coordinator.application[TICKET_DESK])
            for worker, room, s in ((small, 3, 0.05), (large, 100, 0.5), (part, 200, 0.001)):
                await worker.send(
                    Heartbeat(
                        n_sessions=0,
                        n_queued=0,
                        free_kv_bytes=10**8,
                        decode_s_per_block=s,
                        prefill_s_per_token_block=0.0,
                        longest_sessions={tiny: room},
                    )
                )

            def heard() -> list[Heartbeat | None]:
                return [worker.heartbeat for worker in cluster.state.workers.values()]

            await eventually(lambda: all(beat is not None and beat.longest_sessions for beat in heard()))

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
            with pytest.raises(ModelUnavailableError, match="1,000 positions"):
                route(wanting(1000, continues=SessionId("0" * 32)))
