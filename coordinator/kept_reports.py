"""Reports of finished generations that the database doesn't take, in a file: they outlive the coordinator there.

One report a line, as JSON; no prompts, no tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec
import structlog

from coordinator.generation_reports import GenerationReports
from coordinator.stored_rows import ReportedEnd
from protocol.background import uninterrupted
from protocol.disk import storage_errors, write_atomically
from protocol.errors import StorageError

log = structlog.get_logger(__name__)

KEEP_S = 2.0
"""What still waits at the second look is kept: workers send again only what they sent in the 10 s before their
socket was lost."""
MAX_FILE_BYTES = 16 * 2**20
"""Far above what as many reports as may wait take."""


class KeptReports:
    """Keeps in the file at `path` those of `reports` that wait for long."""

    def __init__(self, reports: GenerationReports, path: Path) -> None:
        self._reports = reports
        self._path = path
        self._n_looked_for = 0
        """So many were saved or waited at the last look."""
        self._as_kept = (0, 0)
        """How many had been saved, and taken, when the file was written; alike: there is none."""
        self._is_failing = False
        self._one_at_a_time = asyncio.Lock()
        """At the end, the loop may write still when the last look does."""

    async def take_up(self) -> None:
        """Have those saved that the database didn't take before the last coordinator ended."""
        try:
            ends = await asyncio.to_thread(read_reports, self._path)
        except StorageError as error:
            log.warning("kept_reports_not_read", error_message=error.message)
            return
        if ends:
            log.info("kept_reports_taken_up", n_reports=len(ends))
            for end in ends:
                self._reports.put(end)
            self._as_kept = self._standing

    async def keep_forever(self, *, every_s: float = KEEP_S) -> None:
        """Keep what waits for long, until cancelled; nothing is kept once all is saved."""
        while True:
            await asyncio.sleep(every_s)
            waits_long = self._reports.n_saved < self._n_looked_for
            self._n_looked_for = self._reports.n_saved + len(self._reports.unsaved)
            if waits_long or not self._reports.unsaved:
                await uninterrupted(self._keep())

    async def finish(self, timeout_s: float) -> None:
        """Wait until all that was taken is saved, at most so long. What isn't then, is kept for the next start."""
        await self._reports.saved(timeout_s)
        await uninterrupted(self._keep())
        if self._reports.unsaved:
            is_kept = self._as_kept == self._standing
            event = "generation_reports_left" if is_kept else "generation_reports_lost"
            log.warning(event, n_waiting=len(self._reports.unsaved))

    async def _keep(self) -> None:
        async with self._one_at_a_time:
            ends, standing = tuple(self._reports.unsaved), self._standing
            if standing != self._as_kept and (ends or self._has_file):
                await self._written(ends, standing)

    async def _written(self, ends: Sequence[ReportedEnd], standing: tuple[int, int]) -> None:
        try:
            await asyncio.to_thread(write_reports, self._path, ends)
        except StorageError as error:
            if not self._is_failing:
                log.warning("generation_reports_not_kept", n_waiting=len(ends), error_message=error.message)
            self._is_failing = True
            return
        if ends and (self._is_failing or not self._has_file):
            log.warning("generation_reports_kept", n_waiting=len(ends), file=str(self._path))
        self._as_kept, self._is_failing = standing, False

    @property
    def _has_file(self) -> bool:
        n_saved, n_taken = self._as_kept
        return n_saved != n_taken

    @property
    def _standing(self) -> tuple[int, int]:
        return self._reports.n_saved, self._reports.n_saved + len(self._reports.unsaved)


def read_reports(path: Path) -> tuple[ReportedEnd, ...]:
    """What is kept in the file; nothing if there is none. Blocks.

    Raises:
        StorageError: it can't be read, or isn't one of ours.
    """
    with storage_errors(path):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return ()
    if len(data) > MAX_FILE_BYTES:
        raise StorageError(f"{path} has over {MAX_FILE_BYTES:,} bytes: it isn't a file of reports; remove it")
    try:
        return tuple(msgspec.json.decode(line, type=ReportedEnd) for line in data.splitlines())
    except msgspec.DecodeError as exc:
        raise StorageError(f"{path} isn't a file of reports ({exc}): remove it") from exc


def write_reports(path: Path, ends: Sequence[ReportedEnd]) -> None:
    """Keep these in the file instead of what it holds; none: remove it. Blocks.

    Raises:
        StorageError: the disk is full or the folder can't be written; what was kept is kept.
    """
    with storage_errors(path):
        if ends:
            write_atomically(path, b"".join(msgspec.json.encode(end) + b"\n" for end in ends))
        else:
            path.unlink(missing_ok=True)
