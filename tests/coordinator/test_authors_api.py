"""Authors over HTTP: one name stands for one key, whoever asks at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.app import RunningCoordinator
from protocol.author_keys import author_key_of
from protocol.author_rest import AddAuthorRequest, AuthorList
from tests.support.coordinators import Http, http_session, key_of, running_coordinator

AUTHORS = "/admin/v1/authors"


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def test_of_two_who_give_one_name_to_two_keys_at_once_one_is_told_so(admin: Http) -> None:
    wanted = [
        AddAuthorRequest(name=name, key=author_key_of(Ed25519PrivateKey.generate()))
        for name in ("Ada", "ADA", "Ada", "ada")
    ]
    answers = await asyncio.gather(*(admin.ask("POST", AUTHORS, each) for each in wanted))
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
    assert len((await admin.ask("GET", AUTHORS)).read(AuthorList).authors) == 1


async def test_of_two_who_give_two_names_to_one_key_at_once_one_is_told_so(admin: Http) -> None:
    key = author_key_of(Ed25519PrivateKey.generate())
    wanted = [AddAuthorRequest(name=name, key=key) for name in ("Ada", "Bob")]
    answers = await asyncio.gather(*(admin.ask("POST", AUTHORS, each) for each in wanted))
    assert sorted(answer.status for answer in answers) == [201, 409]
