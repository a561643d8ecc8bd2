"""What tails report of finished generations, on its way into the database, which may be away for a while."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from coordinator.repository import Repository
from coordinator.stored_rows import ReportedEnd, StoredGeneration
from protocol.background import uninterrupted
from protocol.control_messages import GenerationReport
from protocol.errors import StorageError
from protocol.ids import WorkerId, is_session_id

log = structlog.get_logger(__name__)

MAX_REPORTS = 10_000
"""That may wait; what comes beyond is lost, and logged."""
MAX_TOGETHER = 32
"""Of one transaction: routes wait meanwhile for the loop and the database."""
MAX_TOGETHER_BEHIND = 256
"""Where more come than are saved so: routes wait for longer then, else reports would be lost in the end."""
GATHER_S = 0.05
"""What comes so soon after others is saved together: nobody waits for it, and routes want the database."""
RETRY_S = 1.0


class GenerationReports:
    """Takes reports without waiting; `save_forever` saves them, many at once where they come fast.

    Args:
        on_finished: told of every generation that is over, and of what its tail said of it.
    """

    def __init__(
        self,
        repository: Repository,
        clock: Callable[[], float],
        *,
        quota_clock: Callable[[], float],
        on_finished: Callable[[StoredGeneration, GenerationReport], None],
    ) -> None:
        self._repository = repository
        self._clock = clock
        self._quota_clock = quota_clock
        self._on_finished = on_finished
        self._queue: asyncio.Queue[ReportedEnd] = asyncio.Queue(MAX_REPORTS)
        self.unsaved: deque[ReportedEnd] = deque()
        """Those that are being saved, and then those in the queue. For others to read."""
        self.n_saved = 0

    def take(self, report: GenerationReport, reported_by: WorkerId) -> None:
        """Have it saved; only the tail of the session's own route is believed."""
        if not is_session_id(report.session_id):  # it would be tried again for ever
            log.warning("generation_report_refused", session_id=report.session_id[:64])
            return
        at = datetime.fromtimestamp(self._clock(), UTC)
        self.put(ReportedEnd(report=report, at=at, reported_by=reported_by))

    def put(self, entry: ReportedEnd) -> None:
        """As `take`, of one that was taken before."""
        try:
            self._queue.put_nowait(entry)
        except asyncio.QueueFull:
            log.warning("generation_report_lost", session_id=entry.report.session_id[:64], n_waiting=MAX_REPORTS)
        else:
            self.unsaved.append(entry)

    async def save_forever(self, *, retry_s: float = RETRY_S) -> None:
        """Save what is taken, in order, until cancelled; while the database can't be used, try again."""
        while True:
            entries = [await self._queue.get()]
            n_together = _n_together(self._queue.qsize())
            while len(entries) < n_together and not self._queue.empty():
                entries.append(self._queue.get_nowait())
            while True:
                if await uninterrupted(self._are_saved(entries)):
                    break
                await asyncio.sleep(retry_s)
            self.n_saved += len(entries)
            for _ in entries:
                self.unsaved.popleft()
                self._queue.task_done()
            if self._queue.qsize() < MAX_TOGETHER:
                await asyncio.sleep(GATHER_S)

    async def saved(self, timeout_s: float) -> None:
        """Wait until all that was taken is saved, at most so long; what isn't then is `unsaved`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._queue.join()

    async def _are_saved(self, entries: Sequence[ReportedEnd]) -> bool:
        try:
            finished = await self._repository.finish_generations(entries, self._quota_clock)
        except StorageError as error:
            log.warning("generation_report_not_saved", error_message=error.message)
            return False
        for entry, generation in zip(entries, finished, strict=True):
            if generation is None:
                log.warning("generation_report_refused", session_id=entry.report.session_id[:64])
            elif generation.finished_at != entry.at:  # a worker whose socket is lost can't know what was read
                log.info("generation_report_repeated", session_id=generation.session_id)
            else:
                self._on_finished(generation, entry.report)
            await asyncio.sleep(0)  # routes don't wait for all of them
        return True


def _n_together(n_waiting: int) -> int:
    """At most so many in the next transaction: the more wait, the more, so that the line finds its length."""
    return max(MAX_TOGETHER, min(MAX_TOGETHER_BEHIND, n_waiting // 8))
