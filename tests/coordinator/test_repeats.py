"""A POST with an Idempotency-Key is carried out once, however often it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from coordinator.app import RunningCoordinator
from protocol.api_key import api_key_from_text
from protocol.errors import StorageError
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyList
from protocol.rest import ErrorAnswer
from protocol.secret_rest import RotateSecretRequest
from tests.support.clocks import Clock
from tests.support.coordinators import Answer, Http, http_session, key_of, running_coordinator

KEYS = "/admin/v1/keys"
NAMED = {"Idempotency-Key": "a-word-of-the-callers-own"}


@pytest.fixture
def clock() -> Clock:
    return Clock(1_790_000_000.0)


@pytest.fixture
async def coordinator(tmp_path: Path, clock: Clock) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path, clock=clock) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def created(http: Http, name: str = "laptop") -> Answer:
    return await http.ask("POST", KEYS, CreateKeyRequest(name=name), headers=NAMED)


async def n_keys(http: Http) -> int:
    return len((await http.ask("GET", KEYS)).read(KeyList).keys)


async def test_the_same_again_gets_the_first_answer_also_after_a_restart(
    tmp_path: Path, database_url: str, clock: Clock
) -> None:
    answers = []
    for _ in range(2):
        async with (
            running_coordinator(tmp_path, database_url=database_url, clock=clock) as running,
            http_session(running, key_of(running, "admin")) as http,
        ):
            answers += [await created(http), await created(http)]
            assert await n_keys(http) == 3
    assert {answer.status for answer in answers} == {201}
    assert len({answer.body for answer in answers}) == 1
    assert [answer.headers.get("Brigade-Repeated") for answer in answers] == [None, "true", "true", "true"]


async def test_the_database_holds_no_secret_and_what_was_begun_only_is_a_conflict(
    coordinator: RunningCoordinator, http: Http
) -> None:
    secret = api_key_from_text((await created(http)).read(CreatedKey).key).secret
    async with coordinator.repository.transactions.reading() as session:
        rows = (await session.execute(text("SELECT * FROM admin_requests"))).all()
    assert len(rows) == 1
    assert secret not in str(rows)
    assert NAMED["Idempotency-Key"] not in str(rows)
    async with coordinator.repository.transactions.writing() as session:
        await session.execute(text("UPDATE admin_requests SET answer = NULL"))  # as if it had died over it
    again = await created(http)
    assert again.status == 409
    assert "new Idempotency-Key" in again.read(ErrorAnswer).error.message


async def test_at_once_it_is_carried_out_once(http: Http) -> None:
    answers = await asyncio.gather(*(created(http) for _ in range(6)))
    statuses = {answer.status for answer in answers}
    assert statuses <= {201, 409}
    assert 201 in statuses
    for answer in answers:
        if answer.status == 409:
            assert answer.read(ErrorAnswer).error.code == "in_progress"
            assert int(answer.headers["Retry-After"]) >= 1
    assert await n_keys(http) == 3


async def test_another_request_under_the_same_word_is_refused_and_what_is_no_word(http: Http) -> None:
    await created(http)
    for word in ("short", "with a space in it", "x" * 129, "naïve-wörd"):
        answer = await http.ask("POST", KEYS, CreateKeyRequest(name="a"), headers={"Idempotency-Key": word})
        assert answer.status == 400
    other = await created(http, "phone")
    assert (other.status, other.read(ErrorAnswer).error.code) == (422, "idempotency_key_reused")
    assert await n_keys(http) == 3


async def test_what_failed_may_be_sent_again_and_after_a_day_anything(http: Http, clock: Clock) -> None:
    assert (await created(http, "")).status == 400
    first = await created(http)
    assert first.status == 201
    clock.now_s += 24 * 3600 + 1
    again = await created(http)
    assert again.status == 201
    assert again.body != first.body


async def test_what_may_have_been_carried_out_is_not_carried_out_again(
    coordinator: RunningCoordinator, http: Http
) -> None:
    """The database fails right behind the commit, as when the connection to it is lost over its answer."""
    created_by, kept = coordinator.repository.add_api_key, coordinator.repository

    async def add_and_fail(*args: Any, **options: Any) -> None:
        await created_by(*args, **options)
        raise StorageError("the connection was lost")

    vars(kept)["add_api_key"] = add_and_fail
    assert (await created(http)).status == 507
    del vars(kept)["add_api_key"]
    again = await created(http)
    assert (again.status, await n_keys(http)) == (409, 3)
    assert "look whether it was done" in again.read(ErrorAnswer).error.message


async def test_a_rotation_of_the_keys_that_answers_are_kept_under_is_answered_again(http: Http) -> None:
    path, at_once = "/admin/v1/secrets/signing-key/rotate", RotateSecretRequest(grace_s=0)
    answers = [await http.ask("POST", path, at_once, headers=NAMED) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200], answers[1].body
    assert answers[0].body == answers[1].body
