"""What tails report of finished generations, on its way into the database, which may be away for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from coordinator.background import uninterrupted
from coordinator.repository import Repository
from protocol.control_messages import GenerationReport
from protocol.errors import StorageError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

MAX_REPORTS = 10_000
"""That may wait; what comes beyond is lost, and logged."""
RETRY_S = 1.0
SUCCESSES = ("stop", "length")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    report: GenerationReport
    reported_by: WorkerId
    at_s: float


class GenerationReports:
    """Takes reports without waiting; `save_forever` saves them one by one.

    Args:
        on_finished: told the route of every generation that came to its end.
    """

    def __init__(
        self,
        repository: Repository,
        clock: Callable[[], float],
        *,
        on_finished: Callable[[Sequence[WorkerId]], None],
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._on_finished = on_finished
        self._queue: asyncio.Queue[_Entry] = asyncio.Queue(MAX_REPORTS)

    def take(self, report: GenerationReport, reported_by: WorkerId) -> None:
        """Have it saved; only the tail of the session's own route is believed."""
        if not (report.session_id.isalnum() and report.session_id.isascii() and len(report.session_id) <= 64):
            # No id of ours, and what a database can't compare would be tried again for ever.
            log.warning("generation_report_refused", session_id=report.session_id[:64])
            return
        try:
            self._queue.put_nowait(_Entry(report=report, reported_by=reported_by, at_s=self._clock()))
        except asyncio.QueueFull:
            log.warning("generation_report_lost", session_id=report.session_id[:64], n_waiting=MAX_REPORTS)

    async def save_forever(self, *, retry_s: float = RETRY_S) -> None:
        """Save what is taken, in order, until cancelled; while the database can't be used, try again."""
        while True:
            entry = await self._queue.get()
            while True:
                if await uninterrupted(self._is_saved(entry)):
                    break
                await asyncio.sleep(retry_s)
            self._queue.task_done()

    async def saved(self, timeout_s: float) -> None:
        """Wait until all that was taken is saved, at most so long. What isn't then, is lost, and logged."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            log.warning("generation_reports_lost", n_waiting=self._queue.qsize() + 1)

    async def _is_saved(self, entry: _Entry) -> bool:
        report = entry.report
        try:
            finished = await self._repository.finish_generation(
                report, datetime.fromtimestamp(entry.at_s, UTC), reported_by=entry.reported_by
            )
        except StorageError as error:
            log.warning("generation_report_not_saved", error_message=error.message)
            return False
        if finished is None:
            log.warning("generation_report_refused", session_id=report.session_id[:64])
        elif report.outcome in SUCCESSES:
            self._on_finished([worker_id for worker_id, _, _ in finished.route])
        return True
