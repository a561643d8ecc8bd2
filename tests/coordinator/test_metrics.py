"""What is counted of requests for routes, over a real coordinator; the rest: tests/system/test_metrics.py."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from coordinator.app import RunningCoordinator
from coordinator.metrics import CoordinatorMetrics
from protocol.control_messages import Assign
from protocol.errors import NotFoundError
from protocol.ids import ModelName
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import HopFailure, RouteGrant, RouteRequest
from protocol.running_beside import running_beside
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, joined_worker
from tests.support.stored_model import add_model

ASK = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=5, max_tokens=5, wait_s=10.0)


async def value(coordinator: RunningCoordinator, name: str, **labels: str) -> float | None:
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        answer = await http.ask("GET", "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = [s for family in text_string_to_metric_families(answer.body.decode()) for s in family.samples]
    return next((s.value for s in samples if s.name == name and labels.items() <= s.labels.items()), None)


@asynccontextmanager
async def serving(worker: ScriptedWorker) -> AsyncIterator[None]:
    """Hold whatever is assigned."""

    async def hold_forever() -> None:
        while (message := await worker.next()) is not None:
            if isinstance(message, Assign):
                await worker.hold(message)

    async with running_beside(holding=hold_forever()):
        yield


async def new_key(coordinator: RunningCoordinator, limits: KeyLimits) -> str:
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        answer = await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="limited", limits=limits))
    return answer.read(CreatedKey).key


async def test_refusals_are_counted_by_their_limit_and_failovers_by_reasons_that_there_are(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        async with joined_worker(coordinator) as worker, serving(worker):
            for limits, name, statuses in (
                (KeyLimits(max_concurrent=1), "concurrent", [200, 429]),
                (KeyLimits(tokens_per_min=12), "tokens/min", [200, 429]),
                (KeyLimits(tokens_per_day=9), "tokens/day", [400, 400]),
                (KeyLimits(requests_per_min=1), "requests/min", [200, 429]),
            ):
                assert await value(coordinator, "brigade_quota_refusals_total", limit=name) == 0.0
                async with http_session(coordinator, await new_key(coordinator, limits)) as http:
                    assert [(await http.ask("POST", "/v1/routes", ASK)).status for _ in statuses] == statuses
                n_refused = sum(status != 200 for status in statuses)
                assert await value(coordinator, "brigade_quota_refusals_total", limit=name) == n_refused
            async with http_session(coordinator, key_of(coordinator, "client")) as http:
                for code in ("hop_lost", "made-up-by-a-client"):
                    first = (await http.ask("POST", "/v1/routes", ASK)).read(RouteGrant)
                    again = replace(ASK, continues=first.session_id, failure=HopFailure(code=code))
                    assert (await http.ask("POST", "/v1/routes", again)).status == 200
        assert await value(coordinator, "brigade_failovers_total", reason="hop_lost") == 1.0
        assert await value(coordinator, "brigade_failovers_total", reason="other") == 1.0
        assert await value(coordinator, "brigade_failovers_total", reason="made-up-by-a-client") is None
        assert await value(coordinator, "brigade_route_seconds_count", outcome="quota_exceeded") == 3.0
        assert await value(coordinator, "brigade_model_blocks", model="tiny") == len(model.manifest.blocks)


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotFoundError("no such model"), "not_found"),
        (ValueError("a defect"), "internal"),
        (ConnectionError("the caller hung up"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
    ],
)
def test_a_defect_here_is_not_counted_as_a_caller_who_hung_up(error: BaseException, outcome: str) -> None:
    metrics = CoordinatorMetrics()
    with pytest.raises(type(error)), metrics.route_asked(ASK):
        raise error
    assert metrics.registry.get_sample_value("brigade_route_seconds_count", {"outcome": outcome}) == 1.0


def test_a_failure_of_no_session_is_no_failover() -> None:
    metrics = CoordinatorMetrics()
    with metrics.route_asked(replace(ASK, failure=HopFailure(code="hop_lost"))):
        pass
    assert metrics.registry.get_sample_value("brigade_failovers_total", {"reason": "hop_lost"}) is None
