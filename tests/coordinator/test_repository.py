from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from coordinator import transactions
from coordinator.database import opened
from coordinator.policy.effects import (
    DeleteModel,
    Effect,
    SaveAssignment,
    SaveModel,
    SaveMoveAsked,
    SaveMoving,
    SaveWorker,
    SendToWorker,
    WriteAudit,
)
from coordinator.policy.stored import StoredState
from coordinator.policy.under_way import MoveBasis, Moving, PlannedModel
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from protocol.control_messages import DeviceReport, Drain, GenerationReport, SpanAssignment
from protocol.errors import ConflictError, NotFoundError, StorageError
from protocol.ids import BlockRange, CoordinatorId, FileHash, KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.manifest import Manifest, ModelFile, encode_manifest, revision_of

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)
NOW_S = NOW.timestamp()
ALICE, BOB = WorkerId("w-alice"), WorkerId("w-bob")
KEY, SESSION, MODEL = KeyId("k1"), SessionId("s1"), ModelName("tiny")
DEVICE = DeviceReport(
    device="cpu",
    precision="float32",
    n_threads=2,
    memory_bytes=2**40,
    bandwidth_bytes_per_s=1e10,
    flops_per_s=1e11,
)


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        yield Repository(engine)


def model_file(name: str, digit: str) -> ModelFile:
    return ModelFile(name=name, sha256=FileHash(digit * 64), size_bytes=5)


def save_model(name: str = MODEL, n_blocks: int = 2) -> SaveModel:
    manifest = Manifest(
        format_version=1,
        architecture="LlamaForCausalLM",
        model_type="llama",
        hidden_size=8,
        vocab_size=16,
        context_length=32,
        kv_elements_per_token=4,
        weights_dtype="float32",
        is_chat=False,
        blocks=tuple(model_file(f"block-{index}", "a") for index in range(n_blocks)),
        before=(model_file("embedding", "b"),),
        after=(model_file("embedding", "b"),),
        auxiliary=(model_file("config.json", "c"),),
    )
    return SaveModel(name=ModelName(name), revision=revision_of(encode_manifest(manifest)), manifest=manifest)


def save_worker(
    worker_id: WorkerId = ALICE, *, seen_s: float = NOW_S, device: DeviceReport | None = DEVICE
) -> SaveWorker:
    return SaveWorker(
        worker_id=worker_id, status="present", hostname="box", url="https://a:1", device=device, seen_s=seen_s
    )


def save_assignment(epoch: int, *ranges: tuple[int, int], worker_id: WorkerId = ALICE) -> SaveAssignment:
    revision = save_model().revision
    spans = tuple(SpanAssignment(model=MODEL, revision=revision, blocks=BlockRange(*pair)) for pair in ranges)
    return SaveAssignment(worker_id=worker_id, epoch=epoch, spans=spans, reason="because")


async def test_a_new_database_holds_nothing(repository: Repository) -> None:
    assert await repository.load_state() == StoredState()
    assert await repository.api_keys() == ()
    assert await repository.api_key(KEY) is None
    assert await repository.generation(SESSION) is None


async def test_what_is_applied_is_loaded(repository: Repository) -> None:
    model, assignment = save_model(), save_assignment(3, (0, 1), (1, 2))
    message = SendToWorker(worker_id=ALICE, message=Drain(reason="x"))
    await repository.apply([save_worker(), model, message, assignment, save_worker(BOB, device=None)])
    state = await repository.load_state()
    assert [(found.name, found.revision, found.manifest) for found in state.models] == [
        (model.name, model.revision, model.manifest)
    ]
    alice, bob = state.workers
    assert (alice.worker_id, alice.status, alice.hostname, alice.url) == (ALICE, "present", "box", "https://a:1")
    assert (alice.device, alice.seen_s) == (DEVICE, NOW_S)
    assert (alice.epoch, alice.spans, alice.reason) == (3, assignment.spans, "because")
    assert (bob.device, bob.epoch, bob.spans) == (None, 0, ())


async def test_the_replicas_of_a_model_are_kept(repository: Repository) -> None:
    await repository.apply([save_model()])
    assert [model.n_replicas for model in (await repository.load_state()).models] == [1]
    await repository.apply([replace(save_model(), n_replicas=3)])
    assert [model.n_replicas for model in (await repository.load_state()).models] == [3]


async def test_assignments_are_replaced_and_the_epoch_outlives_them(repository: Repository) -> None:
    await repository.apply([save_worker(), save_model(), save_assignment(1, (0, 1))])
    await repository.apply([save_assignment(2, (1, 2)), save_assignment(3, (0, 2))])
    (worker,) = (await repository.load_state()).workers
    assert [span.blocks for span in worker.spans] == [BlockRange(0, 2)]
    await repository.apply([save_assignment(4), save_worker(seen_s=NOW_S + 9)])
    (worker,) = (await repository.load_state()).workers
    assert (worker.epoch, worker.spans, worker.seen_s) == (4, (), NOW_S + 9)


async def test_models_keep_their_order_when_replaced(repository: Repository) -> None:
    await repository.apply([save_model("zebra"), save_model("ant")])
    await repository.apply([save_model("zebra", n_blocks=3)])
    models = (await repository.load_state()).models
    assert [(model.name, model.manifest.n_blocks) for model in models] == [("zebra", 3), ("ant", 2)]
    await repository.apply([DeleteModel(name=ModelName("zebra")), DeleteModel(name=ModelName("unknown"))])
    assert [model.name for model in (await repository.load_state()).models] == ["ant"]


async def test_all_effects_or_none(repository: Repository) -> None:
    orphan = save_assignment(1, (0, 1), worker_id=BOB)
    effects: list[Effect] = [save_worker(), save_model(), orphan]
    with pytest.raises(StorageError):
        await repository.apply(effects)
    assert await repository.load_state() == StoredState()


async def test_a_model_that_is_assigned_is_not_deleted(repository: Repository) -> None:
    await repository.apply([save_worker(), save_model(), save_assignment(1, (0, 1))])
    with pytest.raises(StorageError) as caught:
        await repository.apply([DeleteModel(name=MODEL)])
    assert "DELETE" not in str(caught.value)
    await repository.apply([save_assignment(2), DeleteModel(name=MODEL)])
    assert (await repository.load_state()).models == ()


async def test_words_of_a_worker_are_stored_whatever_they_are(repository: Repository) -> None:
    words = "'; DROP TABLE workers; -- \x00 \x1b[31m é 漢"
    effect = SaveWorker(worker_id=ALICE, status="gone", hostname=words, url=words, device=None, seen_s=NOW_S)
    audit = WriteAudit(at_s=NOW_S, action="worker_gone", subject=words, details=words)
    await repository.apply([effect, audit, SaveAssignment(worker_id=ALICE, epoch=1, spans=(), reason=words)])
    (worker,) = (await repository.load_state()).workers
    assert worker.hostname == words.replace("\x00", "")


async def test_a_database_belongs_to_one_coordinator(repository: Repository) -> None:
    await repository.claim(CoordinatorId("c-1"))
    await repository.claim(CoordinatorId("c-1"))
    with pytest.raises(ConflictError, match=r"belongs to coordinator c-1.*c-2"):
        await repository.claim(CoordinatorId("c-2"))


async def test_keys_live_and_are_revoked(repository: Repository) -> None:
    added = await repository.add_api_key(KEY, "phone", "client", "hash", NOW)
    assert await repository.api_key(KEY) == added
    assert (added.name, added.kind, added.secret_hash, added.created_at) == ("phone", "client", "hash", NOW)
    assert "hash='" not in repr(added)
    assert (await repository.revoke_api_key(KEY, LATER)).revoked_at == LATER
    assert (await repository.revoke_api_key(KEY, LATER + timedelta(1))).revoked_at == LATER
    await repository.add_api_key(KeyId("k0"), "second", "admin", "h", LATER)
    assert [key.key_id for key in await repository.api_keys()] == ["k1", "k0"]
    with pytest.raises(ConflictError):
        await repository.add_api_key(KEY, "again", "client", "hash", NOW)
    with pytest.raises(NotFoundError):
        await repository.revoke_api_key(KeyId("nobody"), NOW)
    assert [line.action for line in await repository.audit_lines()] == ["key_created", "key_revoked", "key_created"]


async def record(repository: Repository) -> None:
    await repository.add_api_key(KEY, "phone", "client", "hash", NOW)
    await repository.record_generation(
        NewGeneration(
            session_id=SESSION,
            key_id=KEY,
            model=MODEL,
            revision=Revision("r"),
            route=((ALICE, 0, 1), (BOB, 1, 2)),
            n_prompt_tokens=7,
            max_tokens=10,
            at=NOW,
        )
    )


def report(n_tokens: int = 4) -> GenerationReport:
    return GenerationReport(session_id=SESSION, n_prompt_tokens=7, n_completion_tokens=n_tokens, outcome="stop")


async def test_a_generation_is_recorded_and_finished_once(repository: Repository) -> None:
    await record(repository)
    begun = await repository.generation(SESSION)
    assert begun is not None
    assert (begun.route, begun.outcome, begun.started_at) == (((ALICE, 0, 1), (BOB, 1, 2)), None, NOW)
    assert await repository.finish_generation(report(), LATER, reported_by=BOB)
    assert not await repository.finish_generation(report(9), LATER)
    done = await repository.generation(SESSION)
    assert done is not None
    assert (done.n_completion_tokens, done.outcome, done.finished_at) == (4, "stop", LATER)


async def test_only_the_tail_is_believed_and_only_within_what_was_allowed(repository: Repository) -> None:
    await record(repository)
    assert not await repository.finish_generation(report(), LATER, reported_by=ALICE)
    assert await repository.finish_generation(report(2**80), LATER, reported_by=BOB)
    done = await repository.generation(SESSION)
    assert done is not None
    assert done.n_completion_tokens == 10


async def test_a_generation_nobody_knows_is_not_finished(repository: Repository) -> None:
    assert not await repository.finish_generation(report(), NOW)


async def test_one_of_many_reports_at_once_counts(repository: Repository) -> None:
    await record(repository)
    finished = await asyncio.gather(
        *(repository.finish_generation(report(n), LATER) for n in range(5)), return_exceptions=True
    )
    assert len([generation for generation in finished if generation is not None]) == 1
    assert finished.count(None) == 4


async def test_many_writers_at_once(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "BUSY_TIMEOUT_MS", 120_000)  # they take their turns on a slow machine
    async with asyncio.TaskGroup() as group:
        for index in range(30):
            group.create_task(repository.add_api_key(KeyId(f"k{index}"), "n", "client", "h", NOW), name=f"{index}")
            group.create_task(repository.api_keys(), name=f"read {index}")
    assert len(await repository.api_keys()) == 30


async def test_audit_lines_come_newest_first(repository: Repository) -> None:
    await repository.apply(
        [WriteAudit(at_s=NOW_S + i, action="drain_asked", subject=f"w{i}", details="x") for i in range(5)]
    )
    lines = await repository.audit_lines(2)
    assert [(line.subject, line.at) for line in lines] == [
        ("w4", NOW + timedelta(seconds=4)),
        ("w3", NOW + timedelta(seconds=3)),
    ]


async def test_a_database_that_went_away(database_url: str) -> None:
    async with opened(database_url) as engine:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("DROP TABLE generations")
        with pytest.raises(StorageError, match="can't be used"):
            await Repository(engine).generation(SESSION)


async def test_that_a_move_was_asked_for_is_kept_until_it_is_over(repository: Repository) -> None:
    for is_asked in (True, True, False, False):
        await repository.apply([SaveMoveAsked(is_asked=is_asked)])
        assert (await repository.load_state()).is_move_asked == is_asked


async def test_what_is_being_moved_is_kept_until_it_is_over(repository: Repository, database_url: str) -> None:
    blocks = SpanAssignment(model=ModelName("m"), revision=Revision("a" * 64), blocks=BlockRange(0, 4))
    moving = Moving(target={WorkerId("w1"): (blocks,), WorkerId("w2"): ()}, reason="gain 12 %", step_s=7.0)
    basis = MoveBasis(
        placement="balance",
        auto_quantize=True,
        models={ModelName("m"): PlannedModel(revision=Revision("a" * 64), n_replicas=2, pinned_ends=False)},
        workers=(WorkerId("w1"), WorkerId("w2")),
        held={WorkerId("w2"): (blocks,)},
        held_as={WorkerId("w1"): "int8", WorkerId("w2"): "float32"},
        pins={WorkerId("w2"): (ModelName("m"), BlockRange(0, 4))},
    )
    for kept in (replace(moving, basis=basis), replace(moving, target={WorkerId("w1"): ()}), None, None):
        await repository.apply([SaveMoving(moving=kept)])
        assert (await repository.load_state()).moving == kept
    async with opened(database_url) as engine:
        async with engine.begin() as connection:
            await connection.exec_driver_sql("INSERT INTO settings (key, value) VALUES ('moving', '{')")
        stored = await Repository(engine).load_state()
        assert stored.moving is None
        assert "truncated" in stored.moving_damage
