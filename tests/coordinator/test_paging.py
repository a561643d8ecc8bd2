"""Lists in pages: nothing is skipped or shown twice while others come and go, and a cursor is signed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coordinator.app import RunningCoordinator
from coordinator.tables import ContributionRow, UsageRow
from protocol.admin_rest import AuditPage, WorkerList
from protocol.control_messages import Assign
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyList
from protocol.quota_rest import OwnerRequest
from protocol.rest import ErrorAnswer
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker
from tests.support.waiting import eventually

KEYS = "/admin/v1/keys"


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def new_key(http: Http, name: str) -> str:
    return (await http.ask("POST", KEYS, CreateKeyRequest(name=name))).read(CreatedKey).key_id


async def test_pages_skip_and_repeat_nothing_while_keys_come_and_go(http: Http) -> None:
    made = [await new_key(http, f"kept {number}") for number in range(5)]
    seen, cursor = [], ""
    while True:
        page = (await http.ask("GET", f"{KEYS}?name=KEPT&is_revoked=false&limit=2&cursor={cursor}")).read(KeyList)
        seen += [key.key_id for key in page.keys]
        if page.next_cursor is None:
            break
        cursor = page.next_cursor
        await http.ask("DELETE", f"{KEYS}/{seen[-1]}")  # after which the next page begins
        await new_key(http, "another")
    assert seen == made


async def test_the_audit_log_is_paged_back_from_the_newest(http: Http) -> None:
    for number in range(4):
        await new_key(http, f"key {number}")
    path = "/admin/v1/audit?action=key_created&limit=2"
    first = (await http.ask("GET", path)).read(AuditPage)
    await new_key(http, "later")
    second = (await http.ask("GET", f"{path}&cursor={first.next_cursor}")).read(AuditPage)
    names = [entry.details.removeprefix("client: ") for entry in (*first.entries, *second.entries)]
    assert names == ["key 3", "key 2", "key 1", "key 0"]


async def test_a_cursor_is_good_for_its_own_list_and_filters_only(http: Http) -> None:
    for damaged in ("x", "WzEsMl0.AAAA", "%F0%9F%98%80", "a" * 900):
        refused = await http.ask("GET", f"{KEYS}?cursor={damaged}")
        assert refused.status == 400
        assert "leave it out" in refused.read(ErrorAnswer).error.message
    cursor = (await http.ask("GET", f"{KEYS}?limit=1")).read(KeyList).next_cursor
    assert (await http.ask("GET", f"{KEYS}?limit=2&cursor={cursor}")).status == 200
    for path in (f"{KEYS}?kind=admin&", "/admin/v1/audit?", "/admin/v1/workers?"):
        refused = await http.ask("GET", f"{path}cursor={cursor}")
        assert refused.status == 400
        assert "another list" in refused.read(ErrorAnswer).error.message


async def test_a_query_parameter_that_cannot_be_is_refused_by_its_name(http: Http) -> None:
    for query, named in (
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=many", "limit"),
        ("kind=root", "kind"),
        ("is_revoked=perhaps", "is_revoked"),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
        ("name=", "name"),
        ("name=%00", "NUL"),
    ):
        refused = await http.ask("GET", f"{KEYS}?{query}")
        assert refused.status == 400, query
        assert named in refused.read(ErrorAnswer).error.message
    refused = await http.ask("GET", "/admin/v1/status?verbose=true")
    assert (refused.status, "no query parameters" in refused.read(ErrorAnswer).error.message) == (400, True)


async def test_workers_are_found_by_what_they_are(coordinator: RunningCoordinator, http: Http) -> None:
    async with joined_worker(coordinator) as one, joined_worker(coordinator) as other:
        for worker in (one, other):
            await worker.receive(Assign)
        await http.ask("PATCH", f"/admin/v1/workers/{one.worker_id}/owner", OwnerRequest(owner="anna"))

        async def found(query: str) -> set[str]:
            answer = await http.ask("GET", f"/admin/v1/workers?{query}")
            return {info.worker_id for info in answer.read(WorkerList).workers}

        assert await found("owner=anna") == {one.worker_id}
        assert await found("owner=") == {other.worker_id}
        assert await found("state=idle&trust_level=probation") == {one.worker_id, other.worker_id}
        assert await found("state=gone") == set()
        assert await found("model=tiny") == set()


async def all_of(http: Http, path: str, limit: int) -> list[Any]:
    """All entries of a list that is read in pages of so many, as they came."""
    found: list[Any] = []
    cursor = ""
    while True:
        mark = "&" if "?" in path else "?"
        answer = await http.ask("GET", f"{path}{mark}limit={limit}&cursor={cursor}")
        assert answer.status == 200, answer.body
        page = json.loads(answer.body)
        next_cursor = page.pop("next_cursor")
        entries = next(value for value in page.values() if isinstance(value, list))
        for entry in entries:
            entry.pop("last_seen_s_ago", None)  # it grows while one asks
        found += entries
        if next_cursor is None:
            return found
        cursor = next_cursor


async def keep_usage(coordinator: RunningCoordinator, key_ids: list[str]) -> None:
    """Of three days of each key, and of two workers, one of which changed its owner."""
    today = datetime.now(UTC).date()
    async with coordinator.repository.transactions.writing() as session:
        for day in (today - timedelta(days=n) for n in range(3)):
            for key_id in key_ids:
                session.add(
                    UsageRow(key_id=key_id, day=day, n_generations=1, n_prompt_tokens=2, n_completion_tokens=3)
                )
            for worker_id, owner in (("w-b", "anna"), ("w-a", "bob"), ("w-a", ""), ("w-c", "anna")):
                session.add(ContributionRow(worker_id=worker_id, owner=owner, day=day, n_token_blocks=5))


async def test_every_list_is_the_same_in_pages_as_whole(tmp_path: Path, database_url: str) -> None:
    async with (
        running_coordinator(tmp_path, database_url=database_url) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
        joined_worker(coordinator) as one,
        joined_worker(coordinator) as other,
    ):
        for worker in (one, other):
            await worker.receive(Assign)
        # what was sought before the other came is given out, and sought anew: till then a reason changes
        await eventually(lambda: coordinator.cluster.state.changed_s is None)
        limited = CreateKeyRequest(name="limited", limits=KeyLimits(max_concurrent=1))
        key_ids = [
            (await http.ask("POST", KEYS, limited)).read(CreatedKey).key_id,
            (await http.ask("POST", KEYS, limited)).read(CreatedKey).key_id,
            (await http.ask("POST", KEYS, limited)).read(CreatedKey).key_id,
        ]
        await keep_usage(coordinator, key_ids)
        for path, n_entries in (
            (KEYS, 5),
            ("/admin/v1/quotas", 3),
            ("/admin/v1/usage", 9),
            (f"/admin/v1/usage?key={key_ids[1]}", 3),
            ("/admin/v1/contributions", 12),
            ("/admin/v1/workers", 2),
            ("/admin/v1/trust", 2),
            ("/admin/v1/assignments", 2),
            ("/admin/v1/audits", 0),
            ("/admin/v1/audit?action=key_created", 5),
        ):
            whole = await all_of(http, path, 1000)
            assert len(whole) == n_entries, path
            assert await all_of(http, path, 1) == whole
            assert await all_of(http, path, 2) == whole
