"""Class 18. Defence: what is kept of a text is found by a session of the same key, which the coordinator signs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from protocol.ids import SessionId
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.messages import SessionOpened, SharedPrefix
from protocol.rest import RouteGrant, RouteRequest
from protocol.tickets import Ticket, verified_claims
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation
from tests.support.stored_model import add_model
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]
SECRET = [5, 9, 30, 4, 77, 12, 8, 61]


async def asked(http: Http, **changes: object) -> RouteGrant:
    fields = {"model": "tiny", "n_prompt_tokens": 8, "max_tokens": 5} | changes
    answer = await http.ask("POST", "/v1/routes", RouteRequest(**fields))  # type: ignore[arg-type]
    assert answer.status == 200, answer.body
    return answer.read(RouteGrant)


async def test_another_keys_text_is_found_by_nobody_and_moves_no_route(tmp_path: Path) -> None:
    """Fails if a route goes where another key's text is kept, or a ticket names it: both tell that it is there.

    Its own key is sent there, on purpose.
    """
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with (
            pinned_workers(coordinator, (0, 4), (0, 4), (0, 4)) as workers,
            http_session(coordinator, key_of(coordinator, "client")) as victim,
            http_session(coordinator, key_of(coordinator, "admin")) as admin,
        ):
            keys = {worker.worker_id: bytes.fromhex(worker.grant.ticket_key) for worker in workers}
            made = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="attacker"))
            elsewhere = (await asked(victim)).hops[0].worker_id
            holder = next(worker for worker in workers if worker.worker_id != elsewhere).worker_id
            others = tuple(key for key in keys if key != holder)
            theirs = await asked(victim, exclude=others)
            prefix = SharedPrefix(session_id=theirs.session_id, n_positions=8)

            def named(grant: RouteGrant) -> list[tuple[str, SharedPrefix | None, SessionId | None]]:
                claims = [verified_claims(hop.ticket, Ticket, (keys[hop.worker_id],), 0.0) for hop in grant.hops]
                return [(claim.worker_id, claim.prefix, claim.continues) for claim in claims]

            async with http_session(coordinator, made.read(CreatedKey).key) as attacker:
                without = named(await asked(attacker))
                for guess in (prefix, SharedPrefix(session_id=SessionId("0" * 32), n_positions=8)):
                    assert named(await asked(attacker, prefix=guess)) == without == [(elsewhere, None, None)]
            assert named(await asked(victim, prefix=prefix)) == [(holder, prefix, None)]


async def turn(ring: Ring, **changes: object) -> tuple[str, int, list[int]]:
    """A generation over the victim's prompt: its session, positions that were there already, and positions run."""
    before = [worker.engine.stats().n_positions_run for worker in ring.workers]
    generation = await Generation.prepared(ring, SECRET, 4, **changes)
    await generation.begin()
    opened = await generation.head.receive(SessionOpened)
    await generation.ids()
    await ring.until_clean()
    after = [worker.engine.stats().n_positions_run for worker in ring.workers]
    return generation.session_id, opened.n_cached, [now - old for now, old in zip(after, before, strict=True)]


@pytest.mark.parametrize("cuts", [(), (2,)], ids=["one worker", "two"])
async def test_the_same_text_is_run_again_for_whoever_isnt_told_of_it(
    checkpoint: Checkpoints, tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """Fails if workers find texts by what they say: `cached_tokens`, or the time, would tell what others asked."""
    async with running_ring(checkpoint("llama"), tmp_path, cuts) as ring:
        session_id, n_cached, n_run = await turn(ring)
        assert n_cached == 0
        assert (await turn(ring))[1:] == (0, n_run)
        guessed = SharedPrefix(session_id=SessionId("f" * 32), n_positions=len(SECRET))
        assert (await turn(ring, prefix=guessed))[1:] == (0, n_run)
        known = SharedPrefix(session_id=SessionId(session_id), n_positions=len(SECRET))
        assert (await turn(ring, prefix=known))[1] > 0
