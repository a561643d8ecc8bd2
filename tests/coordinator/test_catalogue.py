"""Adding and removing models: only what is whole is served, and nothing that isn't a model's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from protocol.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    StorageError,
    UntrustedFileError,
)
from protocol.ids import FileHash, Revision
from tests.support.coordinators import running_coordinator
from tests.support.stored_model import StoredModel, stored_model


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def store(coordinator: RunningCoordinator) -> FileStore:
    return await asyncio.to_thread(FileStore, coordinator.state_folder.files)


async def put(store: FileStore, n_blocks: int = 2) -> StoredModel:
    return await asyncio.to_thread(stored_model, store, n_blocks=n_blocks)


async def test_a_model_that_is_added_has_its_manifest_and_files(
    coordinator: RunningCoordinator, store: FileStore
) -> None:
    model = await put(store)
    await coordinator.catalogue.add("tiny", model.revision)
    assert coordinator.catalogue.names() == ("tiny",)
    assert coordinator.catalogue.manifest_bytes(model.revision) == model.manifest_bytes
    for sha256, data in model.contents.items():
        path = coordinator.catalogue.file_path(sha256)
        assert await asyncio.to_thread(path.read_bytes) == data


async def test_files_of_no_model_are_not_served(coordinator: RunningCoordinator, store: FileStore) -> None:
    stray = await asyncio.to_thread(store.put, b"stray")
    model = await put(store)
    await coordinator.catalogue.add("tiny", model.revision)
    for name in (stray.sha256, model.revision, "../ca.key", "", "0" * 64):
        with pytest.raises(NotFoundError):
            coordinator.catalogue.file_path(name)
    with pytest.raises(NotFoundError):
        coordinator.catalogue.manifest_bytes(stray.sha256)


async def test_adding_again_changes_nothing_and_another_revision_is_a_conflict(
    coordinator: RunningCoordinator, store: FileStore
) -> None:
    first, second = await put(store), await put(store)
    await coordinator.catalogue.add("tiny", first.revision)
    await coordinator.catalogue.add("tiny", first.revision)
    with pytest.raises(ConflictError, match="coord model remove tiny"):
        await coordinator.catalogue.add("tiny", second.revision)


async def test_two_who_add_one_name_at_once_get_one_model(
    coordinator: RunningCoordinator, store: FileStore
) -> None:
    models = [await put(store) for _ in range(2)]
    adding = [coordinator.catalogue.add("tiny", model.revision) for model in models]
    results = await asyncio.gather(*adding, return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["ConflictError", "NoneType"]


async def test_a_missing_or_cut_file_is_said_by_name(coordinator: RunningCoordinator, store: FileStore) -> None:
    model = await put(store)
    victim = model.manifest.blocks[1]
    await asyncio.to_thread(store.remove, victim.sha256)
    with pytest.raises(StorageError, match=rf"{victim.name}.*missing"):
        await coordinator.catalogue.add("tiny", model.revision)
    path = store.path(victim.sha256)
    await asyncio.to_thread(path.parent.mkdir, exist_ok=True)
    await asyncio.to_thread(path.write_bytes, b"cut")
    with pytest.raises(StorageError, match=rf"{victim.name}.*has 3 bytes"):
        await coordinator.catalogue.add("tiny", model.revision)
    assert coordinator.catalogue.names() == ()


async def test_a_manifest_that_is_none_is_refused(coordinator: RunningCoordinator, store: FileStore) -> None:
    no_manifest = await asyncio.to_thread(store.put, b"{}")
    with pytest.raises(UntrustedFileError):
        await coordinator.catalogue.add("tiny", Revision(no_manifest.sha256))
    altered = await put(store)
    await asyncio.to_thread(store.path(FileHash(altered.revision)).write_bytes, altered.manifest_bytes[:-1])
    with pytest.raises(UntrustedFileError, match="altered"):
        await coordinator.catalogue.add("tiny", altered.revision)
    for revision in ("0" * 64, "../../x"):
        with pytest.raises(NotFoundError):
            await coordinator.catalogue.add("tiny", Revision(revision))


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 65])
async def test_a_name_that_cannot_be_one_is_refused(coordinator: RunningCoordinator, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        await coordinator.catalogue.add(name, Revision("0" * 64))


async def test_removing_takes_the_files_that_no_other_model_has(
    coordinator: RunningCoordinator, store: FileStore
) -> None:
    model, other = await put(store), await put(store)
    await coordinator.catalogue.add("tiny", model.revision)
    await coordinator.catalogue.add("same", model.revision)
    await coordinator.catalogue.add("other", other.revision)
    await coordinator.catalogue.remove("tiny")
    assert coordinator.catalogue.manifest_bytes(model.revision)
    await coordinator.catalogue.remove("same")
    left = set(await asyncio.to_thread(store.hashes))
    assert left == {*other.contents, other.revision}
    with pytest.raises(NotFoundError):
        coordinator.catalogue.manifest_bytes(model.revision)
    with pytest.raises(NotFoundError, match="the models here: other"):
        await coordinator.catalogue.remove("tiny")


async def test_files_stay_while_somebody_adds_a_model(coordinator: RunningCoordinator, store: FileStore) -> None:
    model = await put(store)
    await coordinator.catalogue.add("tiny", model.revision)
    with store.lock():  # as `coord model add` holds it
        await coordinator.catalogue.remove("tiny")
    assert coordinator.catalogue.names() == ()
    assert store.has(FileHash(model.revision))
