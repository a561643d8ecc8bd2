"""Class 21, with an enemy in the store or on the coordinator. Defence: authors' signatures, checked by workers."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from protocol.author_keys import AuthorKey, author_key_of
from protocol.author_rest import AddAuthorRequest, AuthorList
from protocol.cluster_rest import AddModelRequest, ChangeModelRequest
from protocol.ids import Revision
from protocol.model_signature import sign
from protocol.rest import ErrorAnswer, ModelInfo, RouteRequest
from tests.coordinator.test_client_api import TINY, pinned_workers
from tests.support.coordinators import Answer, Http, http_session, key_of, running_coordinator
from tests.support.stored_model import StoredModel, add_model, stored_model
from tests.support.waiting import eventually
from tests.support.whole_cluster import Member, packed_tiny, whole_cluster

ADA, MALLORY = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def signed(revision: Revision, key: Ed25519PrivateKey = ADA, signer: str = "Ada") -> str:
    return sign(revision, key, model="tiny", version="1", signer=signer, at=datetime.now(UTC)).decode()


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path, require_signed_models=True) as running:
        yield running


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def trust(admin: Http, name: str = "Ada", key: Ed25519PrivateKey = ADA) -> AuthorKey:
    answer = await admin.ask("POST", "/admin/v1/authors", AddAuthorRequest(name=name, key=author_key_of(key)))
    assert answer.status == 201, answer.body
    return author_key_of(key)


async def stored(coordinator: RunningCoordinator) -> StoredModel:
    return await asyncio.to_thread(lambda: stored_model(FileStore(coordinator.state_folder.files)))


async def added(admin: Http, model: StoredModel, signature: str | None) -> Answer:
    request = AddModelRequest(name=TINY, revision=model.revision, signature=signature)
    return await admin.ask("POST", "/admin/v1/models", request)


async def test_only_what_a_trusted_author_signed_is_added(coordinator: RunningCoordinator, admin: Http) -> None:
    """Fails if any of: key, revision, or the signature itself isn't checked."""
    await trust(admin)
    model, other = await stored(coordinator), await stored(coordinator)
    envelope = json.loads(signed(model.revision, MALLORY))
    payload = json.loads(base64.b64decode(envelope["payload"])) | {"key": author_key_of(ADA)}
    relabelled = envelope | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}
    for signature, status, words in (
        (None, 403, "isn't signed"),
        (signed(other.revision), 422, "get the signature that goes with it"),  # moved over from another model
        (signed(model.revision, MALLORY), 403, "no trusted author"),  # the signer's own name is no proof
        (json.dumps(relabelled), 422, "doesn't verify"),  # somebody else's signature under Ada's key
        (signed(model.revision)[:-40], 422, "damaged"),
        ("", 422, "damaged"),
    ):
        answer = await added(admin, model, signature)
        assert (answer.status, words in answer.read(ErrorAnswer).error.message) == (status, True), answer.body
    assert coordinator.catalogue.names() == ()
    answer = await added(admin, model, signed(model.revision))
    assert answer.status == 201, answer.body
    found = answer.read(ModelInfo).signed
    assert found is not None
    assert (found.author, found.signer) == ("Ada", "Ada")


async def test_an_unsigned_older_revision_doesnt_come_back(coordinator: RunningCoordinator, admin: Http) -> None:
    """A downgrade: fails if the rule holds for names or for the first time only."""
    await trust(admin)
    old, new = await stored(coordinator), await stored(coordinator)
    assert (await added(admin, new, signed(new.revision))).status == 201
    assert (await added(admin, old, None)).status == 409
    assert (await admin.ask("DELETE", f"/admin/v1/models/{TINY}")).status == 200
    old = await asyncio.to_thread(lambda: stored_model(FileStore(coordinator.state_folder.files)))
    assert (await added(admin, old, None)).status == 403


async def test_one_name_is_one_author(coordinator: RunningCoordinator, admin: Http) -> None:
    """Fails if an author could be added under the name of another, or with a name that a terminal obeys."""
    await trust(admin)
    for name, key, status in (("ada", MALLORY, 409), ("Bob", ADA, 409)):
        request = AddAuthorRequest(name=name, key=author_key_of(key))
        assert (await admin.ask("POST", "/admin/v1/authors", request)).status == status
    for body in (
        {"name": "Ada\x1b[2J", "key": author_key_of(MALLORY)},
        {"name": "Ad\u202ea", "key": author_key_of(MALLORY)},
        {"name": "Mallory", "key": author_key_of(MALLORY)[:-1]},
    ):
        assert (await admin.ask("POST", "/admin/v1/authors", json.dumps(body).encode())).status == 400
    assert [each.name for each in (await admin.ask("GET", "/admin/v1/authors")).read(AuthorList).authors] == ["Ada"]


async def test_no_generation_begins_once_the_author_is_trusted_no_longer(tmp_path: Path) -> None:
    """Of models that are served already too, and after a restart; when he is trusted again they do."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        model = await add_model(coordinator)
        change = ChangeModelRequest(signature=signed(model.revision))
        assert (await admin.ask("PATCH", f"/admin/v1/models/{TINY}", change)).status == 200
        await trust(admin)
    async with (
        running_coordinator(tmp_path, require_signed_models=True) as coordinator,
        pinned_workers(coordinator, (0, 4)),
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        assert (await refusal_of_route(coordinator)) is None
        assert (await admin.ask("DELETE", f"/admin/v1/authors/{author_key_of(ADA)}")).status == 200
        refused = await refusal_of_route(coordinator)
        assert refused is not None
        assert "coord author add" in refused
        shown = (await admin.ask("GET", f"/admin/v1/models/{TINY}")).read(ModelInfo)
        assert (shown.state, "coord author add" in shown.reason) == ("incomplete", True)
        assert shown.refused
        await trust(admin)
        assert (await refusal_of_route(coordinator)) is None
        actions = [line.action for line in await coordinator.repository.audit_lines()]
        assert (actions.count("author_added"), actions.count("author_removed")) == (2, 1)
        assert "model_signed" in actions


async def refusal_of_route(coordinator: RunningCoordinator) -> str | None:
    """Why a client gets no route; None if it does."""
    async with http_session(coordinator, key_of(coordinator, "client")) as client:
        answer = await client.ask("POST", "/v1/routes", RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5))
        return None if answer.status == 200 else answer.read(ErrorAnswer).error.message


async def test_a_worker_believes_authors_and_not_the_coordinator(tmp_path: Path) -> None:
    """A coordinator in an enemy's hands demands no signatures: fails if the worker loads what it is told to."""
    packed, _ = await asyncio.to_thread(packed_tiny, tmp_path, "llama")
    options: dict[str, Any] = {"trusted_authors": (author_key_of(ADA),)}
    async with whole_cluster(tmp_path, settle_s=0.1) as cluster:
        member = await cluster.join("careful", **options)
        await cluster.add_model("tiny", packed)
        await eventually(lambda: "it isn't signed" in said(member))
        revision = packed.model.revision
        await cluster.coordinator.catalogue.change("tiny", signature=signed(revision, MALLORY))
        await eventually(lambda: "none of the 1 trusted here" in said(member))
        assert not list((tmp_path / "careful" / "cache" / "files").glob("??/*")), "nothing was downloaded for it"
        await cluster.coordinator.catalogue.change("tiny", signature=signed(revision))
        await cluster.until_ready()
        assert len(await cluster.ids("tiny", [5, 9, 30], max_tokens=2)) == 2


def said(member: Member) -> str:
    """What the worker says of its blocks."""
    return " ".join(status.reason for status in member.worker.holdings.report.spans)
