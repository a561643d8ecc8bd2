"""Class 11. Defences: the socket's own address counts, one transaction for the last unit, numbers with bounds."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.joining import JOIN_LIMIT, AttemptLimiter
from protocol.codec import encode_json
from protocol.control_messages import GenerationReport
from protocol.errors import OverloadedError
from protocol.host_names import rate_key
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.quota_rest import QuotaInfo
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from protocol.worker_rest import ChallengeRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey
from tests.support.route_asking import admin, coordinator
from tests.support.waiting import eventually_answered

__all__ = ["admin", "coordinator"]

NUMBERS = ("-1", "-0.0", "1.5", "1e400", "1e308", "NaN", "Infinity", "true", '"1"', "[]", str(2**63), "9" * 400)


async def limited(admin: Http, **limits: Any) -> CreatedKey:
    answer = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="k", limits=KeyLimits(**limits)))
    return answer.read(CreatedKey)


def wanted(**changes: Any) -> RouteRequest:
    return RouteRequest(**({"model": "tiny", "n_prompt_tokens": 10, "max_tokens": 20} | changes))


async def test_headers_dont_make_another_address_of_a_caller(tmp_path: Path) -> None:
    """Fails if `_peer` believes a header, or joining isn't limited at all. The clock stands still."""
    request = encode_json(
        ChallengeRequest(protocol_version="1.0", worker_id=WorkerKey().worker_id, client_nonce="a" * 64)
    )
    now_s = utc_now_s()
    async with running_coordinator(tmp_path, clock=lambda: now_s) as coordinator, http_session(coordinator) as http:
        statuses = []
        for i in range(int(JOIN_LIMIT.capacity) + 3):
            address = f"203.0.113.{i}"
            spoofed = {"X-Forwarded-For": address, "X-Real-IP": address, "Forwarded": f"for={address}"}
            statuses.append((await http.ask("POST", "/v1/join/challenge", request, headers=spoofed)).status)
    assert statuses[:-3] == [statuses[0]] * int(JOIN_LIMIT.capacity)
    assert statuses[0] != 503
    assert statuses[-3:] == [503] * 3


def test_a_machine_with_many_addresses_is_one_caller() -> None:
    """Fails if IPv6 addresses are counted one by one: whoever has one has 2**64."""
    limiter = AttemptLimiter()
    for i in range(int(JOIN_LIMIT.capacity)):
        limiter.check(rate_key(f"2001:db8:1:2::{i:x}"), 0.0)
    for address in ("2001:db8:1:2:ffff::1", "2001:db8:1:2::1%eth0"):
        with pytest.raises(OverloadedError, match="try again in"):
            limiter.check(rate_key(address), 0.0)
    limiter.check(rate_key("2001:db8:1:3::1"), 0.0)
    assert rate_key("::ffff:10.0.0.1") == rate_key("10.0.0.1") != rate_key("10.0.0.2")


async def test_of_those_who_race_for_the_last_unit_one_gets_it(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    """Fails if what is left is looked up before it is taken."""
    for limits in ({"requests_per_min": 1}, {"tokens_per_day": 30}, {"max_concurrent": 1}):
        key = await limited(admin, **limits)
        async with pinned_workers(coordinator, (0, 4)), http_session(coordinator, key.key) as http:
            answers = await asyncio.gather(*(http.ask("POST", "/v1/routes", wanted()) for _ in range(8)))
            assert sorted(answer.status for answer in answers) == [200] + [429] * 7, limits


async def test_numbers_that_nobody_means_are_refused_everywhere(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    """Fails if a field is unbounded: a negative count would be given back, a huge one fits into no column."""
    paths = {
        "/v1/routes": (
            '{{"model":"tiny","n_prompt_tokens":1,"max_tokens":1,"{}":{}}}',
            ("n_prompt_tokens", "max_tokens", "wait_s", "min_trust"),
        ),
        "/admin/v1/keys": (
            '{{"name":"k","limits":{{"{}":{}}}}}',
            tuple(name for name, kind in KeyLimits.__annotations__.items() if "int" in kind or "float" in kind),
        ),
    }
    fine = {("wait_s", "1.5"), ("wait_s", "-0.0"), ("min_trust", "-0.0")}
    async with http_session(coordinator, key_of(coordinator, "client")) as client:
        for path, (form, names) in paths.items():
            http = client if path.startswith("/v1") else admin
            for name in names:
                for number in NUMBERS:
                    answer = await http.ask("POST", path, form.format(name, number).encode())
                    if (name, number) not in fine:
                        code = answer.read(ErrorAnswer).error.code
                        assert (answer.status, code) == (400, "invalid_request"), (name, number)


async def test_what_is_given_back_is_given_back_once(coordinator: RunningCoordinator, admin: Http) -> None:
    """Fails if a report is settled each time that it comes, or a count that no answer has is believed."""
    key = await limited(admin, tokens_per_day=100)
    async with pinned_workers(coordinator, (0, 4)) as (worker,), http_session(coordinator, key.key) as http:

        async def used() -> int:
            quota = (await admin.ask("GET", f"/admin/v1/quotas/{key.key_id}")).read(QuotaInfo)
            return round(sum(rate.used for rate in quota.rates))

        ids = [(await http.ask("POST", "/v1/routes", wanted())).read(RouteGrant).session_id for _ in range(2)]
        assert await used() == 60
        report = GenerationReport(session_id=ids[0], n_prompt_tokens=10, n_completion_tokens=2, outcome="stop")
        for _ in range(3):
            await worker.send(report)
        last = GenerationReport(session_id=ids[1], n_prompt_tokens=-50, n_completion_tokens=-50, outcome="stop")
        await worker.send(last)

        async def is_over() -> bool:
            generation = await coordinator.repository.generation(ids[1])
            return generation is not None and generation.outcome is not None

        await eventually_answered(is_over)
        assert 12 <= await used() <= 60, "neither twice nor below nothing"
