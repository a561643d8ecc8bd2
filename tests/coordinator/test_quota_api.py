"""Limits as operators set them and clients meet them: over HTTP, on a whole coordinator."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from coordinator.app import RunningCoordinator
from protocol.compatibility import VERSION_HEADER
from protocol.control_messages import GenerationReport
from protocol.ids import ModelName
from protocol.key_limits import KeyLimits, LimitsChange
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo, KeyList
from protocol.quota_rest import ContributionList, OwnerRequest, QuotaInfo, QuotaList, UsageList
from protocol.rest import ErrorAnswer, HopFailure, RouteGrant, RouteRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import Answer, Http, http_session
from tests.support.route_asking import admin, coordinator
from tests.support.waiting import eventually_answered

__all__ = ["admin", "coordinator"]


async def new_key(admin: Http, **limits: Any) -> CreatedKey:
    answer = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="k", limits=KeyLimits(**limits)))
    assert answer.status == 201, answer.body
    return answer.read(CreatedKey)


async def ask(http: Http, n_prompt: int = 10, max_tokens: int = 20, **more: Any) -> Answer:
    return await http.ask(
        "POST", "/v1/routes", RouteRequest(model="tiny", n_prompt_tokens=n_prompt, max_tokens=max_tokens, **more)
    )


async def test_a_limit_that_is_used_up_says_which_and_exactly_when(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    key = await new_key(admin, tokens_per_min=100, models=("tiny",))
    async with pinned_workers(coordinator, (0, 4)) as (worker,), http_session(coordinator, key.key) as http:
        await admin.ask("PATCH", f"/admin/v1/workers/{worker.worker_id}/owner", OwnerRequest(owner="ann"))
        first = (await ask(http, 10, 80)).read(RouteGrant)
        again = await ask(http, 18, 72, continues=first.session_id, failure=HopFailure(code="hop_lost"))
        assert again.status == 200, again.body
        refused = await ask(http)
        error = refused.read(ErrorAnswer).error
        assert (refused.status, error.code) == (429, "quota_exceeded")
        assert error.message.startswith("tokens/min: 1")
        assert "of 100 would be used" in error.message
        assert error.retry_after_s is not None
        assert int(refused.headers["Retry-After"]) == math.ceil(error.retry_after_s)
        assert (await ask(http, 10, 95)).read(ErrorAnswer).error.code == "over_limit"

        report = GenerationReport(
            session_id=again.read(RouteGrant).session_id, n_prompt_tokens=18, n_completion_tokens=2, outcome="stop"
        )
        await worker.send(report)

        async def is_given_back() -> bool:
            quota = (await admin.ask("GET", f"/admin/v1/quotas/{key.key_id}")).read(QuotaInfo)
            return quota.rates[0].used <= 20 and quota.n_running == 0

        await eventually_answered(is_given_back)
        usage = (await admin.ask("GET", "/admin/v1/usage?days=2")).read(UsageList).usage
        assert [(day.key_id, day.n_completion_tokens) for day in usage] == [(key.key_id, 2)]
        given = (await admin.ask("GET", "/admin/v1/contributions")).read(ContributionList).contributions
        assert [(one.worker_id, one.owner, one.n_token_blocks) for one in given] == [(worker.worker_id, "ann", 80)]


async def test_of_many_at_once_as_many_pass_as_there_is_room_for(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    key = await new_key(admin, max_concurrent=3)
    async with pinned_workers(coordinator, (0, 4)), http_session(coordinator, key.key) as http:
        statuses = [answer.status for answer in await asyncio.gather(*(ask(http) for _ in range(20)))]
        assert sorted(statuses) == [200] * 3 + [429] * 17


async def test_limits_are_changed_shown_and_hold_at_once(coordinator: RunningCoordinator, admin: Http) -> None:
    key = await new_key(admin)
    path = f"/admin/v1/keys/{key.key_id}/limits"
    changed = await admin.ask("PATCH", path, LimitsChange(models=("other",), min_trust=0.2, tokens_per_day=50))
    assert changed.read(KeyInfo).limits == KeyLimits(models=("other",), min_trust=0.2, tokens_per_day=50)
    async with http_session(coordinator, key.key) as http:
        assert (await ask(http)).status == 403
        await admin.ask("PATCH", path, LimitsChange(models=None, max_context=20))
        assert (await ask(http)).read(ErrorAnswer).error.code == "context_exceeded"
    quotas = (await admin.ask("GET", "/admin/v1/quotas")).read(QuotaList).quotas
    assert [(quota.key_id, quota.limits.max_context) for quota in quotas] == [(key.key_id, 20)]
    listed = (await admin.ask("GET", "/admin/v1/keys")).read(KeyList).keys
    assert [info.limits.max_context for info in listed if info.key_id == key.key_id] == [20]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'{"tokens_per_min": 0}', "tokens_per_min is 0; it can be 1 to 1,000,000,000,000"),
        (b'{"requests_per_min": -1}', "requests_per_min is -1"),
        (b'{"max_concurrent": 999999999}', "max_concurrent is 999999999; it can be 1 to 100,000"),
        (b'{"min_trust": 1.5}', "min_trust is 1.5"),
        (b'{"models": []}', "models has 0 names"),
        (b'{"models": ["../x"]}', "can't be a model's name"),
        (b'{"priority": "royal"}', "priority"),
        (b'{"tokens_per_hour": 5}', "tokens_per_hour"),
    ],
)
async def test_limits_that_are_none_are_refused_with_the_reason(admin: Http, body: bytes, words: str) -> None:
    key = await new_key(admin)
    answer = await admin.ask("PATCH", f"/admin/v1/keys/{key.key_id}/limits", body)
    assert answer.status == 400
    assert words in answer.read(ErrorAnswer).error.message


async def test_what_is_not_there_and_days_that_are_none(admin: Http) -> None:
    assert (await admin.ask("PATCH", "/admin/v1/keys/nobody/limits", LimitsChange(max_context=5))).status == 404
    assert (await admin.ask("GET", "/admin/v1/quotas/nobody")).status == 404
    assert (await admin.ask("GET", "/admin/v1/usage?key=nobody")).status == 404
    for days in ("0", "367", "x", "-1"):
        assert (await admin.ask("GET", f"/admin/v1/usage?days={days}")).status == 400


@pytest.mark.parametrize(("agent", "status"), [("curl/8.5.0", 429), ("Python/3.11 aiohttp/3.9.5", 503)])
async def test_who_is_no_program_of_ours_is_told_of_a_limit_in_todays_words(
    coordinator: RunningCoordinator, admin: Http, agent: str, status: int
) -> None:
    """A client of 1.0 says no version, and has only ever heard of 503."""
    key = await new_key(admin, requests_per_min=1)
    async with pinned_workers(coordinator, (0, 4)), http_session(coordinator, key.key) as http:
        del http.session.headers[VERSION_HEADER]
        ask = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=1, max_tokens=1)
        answers = [await http.ask("POST", "/v1/routes", ask, headers={"User-Agent": agent}) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, status]
