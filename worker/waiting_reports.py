"""Reports of generations on their way to the coordinator: those that wait, those that a lost socket may have had.

A report that was sent isn't acknowledged. Sent shortly before a socket was lost, it may never have been read, so it
is sent again on the next one: of several the coordinator counts the first.
"""

from __future__ import annotations

import asyncio
from collections import deque

import structlog

from protocol.control_messages import GenerationReport

log = structlog.get_logger(__name__)

MAX_WAITING_REPORTS = 4096
"""Kept while the coordinator is away; the oldest go first."""
UNSURE_S = 10.0
"""Sent so long before its socket was lost, a report was read: pings were answered behind it."""


class WaitingReports:
    """Used on the event loop only."""

    def __init__(self) -> None:
        self._waiting: deque[GenerationReport] = deque()
        self._sent: deque[tuple[float, GenerationReport]] = deque(maxlen=MAX_WAITING_REPORTS)
        """Since when, and what."""
        self._has_some = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, report: GenerationReport) -> None:
        """Have one sent."""
        if len(self._waiting) == MAX_WAITING_REPORTS:
            log.warning("generation_report_dropped", session_id=self._waiting.popleft().session_id)
        self._waiting.append(report)
        self._note()

    async def next(self) -> GenerationReport:
        """The one to be sent next, once there is one."""
        await self._has_some.wait()
        return self._waiting[0]

    def sent(self, report: GenerationReport, now_s: float) -> None:
        """It is on its way; `now_s` is of a clock that never steps."""
        if self._waiting and self._waiting[0] is report:  # else a full queue lost it meanwhile
            self._waiting.popleft()
        self._sent.append((now_s, report))
        self._forget(now_s)
        self._note()

    def send_again(self, now_s: float) -> None:
        """The socket is lost: have those sent again, before all others, that may have been lost with it."""
        self._forget(now_s)
        unsure = [report for _, report in self._sent]
        room = MAX_WAITING_REPORTS - len(self._waiting)
        self._waiting.extendleft(reversed(unsure[max(0, len(unsure) - room) :]))
        self._sent.clear()
        self._note()

    async def all_sent(self) -> None:
        """Wait until none waits."""
        await self._all_sent.wait()

    def _forget(self, now_s: float) -> None:
        while self._sent and self._sent[0][0] < now_s - UNSURE_S:
            self._sent.popleft()

    def _note(self) -> None:
        some, none = (self._has_some, self._all_sent) if self._waiting else (self._all_sent, self._has_some)
        some.set()
        none.clear()
