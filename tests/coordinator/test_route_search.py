"""What was found holds as long as the state does in which it was looked for, and not a moment longer."""

from __future__ import annotations

from pathlib import Path

from coordinator.keys import TICKET_DESK
from coordinator.policy.routing import NOTHING_AVOIDED, NOTHING_HELD, Avoided, Route
from coordinator.route_search import RouteSearch
from protocol.control_messages import Heartbeat
from protocol.ids import BlockRange, ModelName
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
