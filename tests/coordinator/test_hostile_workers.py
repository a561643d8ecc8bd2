"""A worker of the cluster that says what no database keeps: what the others say is kept all the same."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from coordinator.app import RunningCoordinator
from protocol.cluster_rest import ClusterStatus
from protocol.control_messages import (
    Assign,
    FilesHeld,
    GenerationReport,
    Heartbeat,
    Leaving,
    LinkReport,
    SessionsBegun,
    SpanReport,
    SpanStatus,
)
from protocol.ids import BlockRange, FileHash, ModelName, Revision, SessionId, WorkerId
from protocol.rest import RouteGrant, RouteRequest
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually_answered

ODD_TEXTS = (
    "\x00",
    "a\x00b",
    "\U0010ffff\ufffe",
    "\u202e\x1b[2J",
    "x" * 200_000,
    "'; DROP TABLE workers;",
    "%s {0}",
)
HUGE, LEAST = 2**64 - 1, -(2**63)
LONGEST_LINE = 5000
"""Characters of a line of the log."""


def odd_messages(worker_id: WorkerId) -> list[object]:
    """Well-formed messages whose texts and numbers are no worker's."""
    said: list[object] = []
    for text in ODD_TEXTS:
        span = SpanStatus(
            model=ModelName(text),
            revision=Revision(text),
            blocks=BlockRange(0, 4),
            state="failed",
            reason=text,
            note=text,
            kv_bytes_by_block=(LEAST, HUGE),
        )
        said += [
            GenerationReport(
                session_id=SessionId(text), n_prompt_tokens=HUGE, n_completion_tokens=LEAST, outcome="stop"
            ),
            SessionsBegun(session_ids=(SessionId(text),), was_away=True, over=(SessionId(text),)),
            SpanReport(epoch=1, spans=(span,)),
            SpanReport(epoch=HUGE, spans=(span,)),
            FilesHeld(files=(FileHash(text),)),
        ]
    for number in (math.nan, math.inf, -1.0, 1e308):
        said.append(
            Heartbeat(
                n_sessions=HUGE,
                n_queued=LEAST,
                free_kv_bytes=HUGE,
                decode_s_per_block=number,
                prefill_s_per_token_block=number,
                round_trips_s={WorkerId("\x00"): number, worker_id: number},
                hop_p50_s=number,
                hop_p99_s=number,
                links={WorkerId("\x00"): LinkReport(n_bytes_sent=HUGE, bytes_per_s=number)},
                longest_sessions={ModelName("tiny"): HUGE, ModelName("\x00"): LEAST},
                time_s=number,
            )
        )
    return said


async def hold_all(worker: ScriptedWorker) -> None:
    """Take what is assigned; what was assigned before there was a model is nothing."""
    while not (assign := await worker.receive(Assign)).spans:
        pass
    await worker.hold(assign)


async def reports_are_kept(coordinator: RunningCoordinator, worker: ScriptedWorker) -> None:
    """A route over this worker, and its report of it."""
    async with http_session(coordinator, key_of(coordinator, "client")) as client:
        ask = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=5, wait_s=10.0)
        grant = (await client.ask("POST", "/v1/routes", ask)).read(RouteGrant)
    assert [hop.worker_id for hop in grant.hops] == [worker.worker_id]
    report = GenerationReport(
        session_id=grant.session_id, n_prompt_tokens=3, n_completion_tokens=5, outcome="length"
    )
    await worker.send(report)

    async def is_kept() -> bool:
        stored = await coordinator.repository.generation(grant.session_id)
        return stored is not None and stored.outcome == "length"

    await eventually_answered(is_kept)


@pytest.mark.timeout(120)
async def test_what_no_database_keeps_stands_in_nobody_s_way(tmp_path: Path, database_url: str) -> None:
    with capture_logs() as logged:
        await stands_in_nobody_s_way(tmp_path, database_url)
    assert not [line for line in logged if len(repr(line)) > LONGEST_LINE]


async def stands_in_nobody_s_way(tmp_path: Path, database_url: str) -> None:
    async with running_coordinator(tmp_path, database_url=database_url) as coordinator:
        await add_model(coordinator)
        async with joined_worker(coordinator) as honest:
            await hold_all(honest)
            for number, text in enumerate(ODD_TEXTS):
                device = msgspec.structs.replace(announcement().device, device=text, n_threads=HUGE)
                announce = announcement(
                    f"https://127.0.0.1:{7100 + number}",
                    hostname=text,
                    version=text,
                    device=device,
                    epoch=HUGE,
                    files=(FileHash(text),),
                )
                async with joined_worker(coordinator, announce=announce) as hostile:
                    for message in odd_messages(honest.worker_id):
                        await hostile.send(message)
                    await honest.beat()
                    await reports_are_kept(coordinator, honest)
                    await hostile.send(Leaving(reason=text))
                    await reports_are_kept(coordinator, honest)
            async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
                (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
                for path in ("/admin/v1/trust", "/admin/v1/workers", "/admin/v1/audit", "/metrics"):
                    assert (await admin.ask("GET", path)).status == 200, path
    async with (
        running_coordinator(tmp_path, database_url=database_url) as coordinator,
        joined_worker(coordinator, key=honest.key) as honest,
    ):
        await hold_all(honest)
        await reports_are_kept(coordinator, honest)
