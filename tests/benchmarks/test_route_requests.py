from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from benchmarks.quota_load import REQUEST, load
from benchmarks.quota_routes import serving_worker
from benchmarks.route_requests import RouteRequests
from protocol.codec import decode_json
from protocol.ids import ModelName
from protocol.rest import ErrorAnswer, RouteGrant
from tests.support.coordinators import key_of, running_coordinator


async def test_routes_are_asked_for_over_connections_that_are_kept(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as running, serving_worker(running) as worker:
        routes = RouteRequests(
            port=running.port, ca_pem=running.authority.ca_pem, key=key_of(running, "client"), request=REQUEST
        )
        async with routes:
            first = await routes.ask()
            assert first.status == 200
            assert decode_json(first.body, RouteGrant).model == REQUEST.model
            together = await asyncio.gather(*(routes.ask() for _ in range(3)))
            assert len({decode_json(one.body, RouteGrant).session_id for one in (first, *together)}) == 4
            done = await load(routes, worker, 20, 1000.0)
            assert (done.n_requests, done.n_granted, done.n_refused) == (20, 20, 0)
            assert 0 < done.latency_s(50.0) <= done.latency_s(100.0)


@pytest.mark.parametrize(("key", "model", "status"), [("bk_wrong", "tiny", 401), (None, "nobody", 404)])
async def test_refusals_come_back_as_they_are(tmp_path: Path, key: str | None, model: str, status: int) -> None:
    async with running_coordinator(tmp_path) as running:
        request = msgspec.structs.replace(REQUEST, model=ModelName(model))
        routes = RouteRequests(
            port=running.port,
            ca_pem=running.authority.ca_pem,
            key=key or key_of(running, "client"),
            request=request,
        )
        async with routes:
            answer = await routes.ask()
            assert answer.status == status
            assert decode_json(answer.body, ErrorAnswer).error.message
