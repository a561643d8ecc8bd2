"""What is written down of one session: lines of the log that name it and its trace, and a span of that."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from worker.ending import Ending
from worker.session_parts import Opening, Shared

_ERRORS = ("failed", "lost", "deadline")
"""Reasons that are nobody's wish."""


class SessionNotes:
    """Begins with the session."""

    def __init__(self, opening: Opening, shared: Shared) -> None:
        self._ticket = opening.ticket
        self._trace = opening.trace
        self._worker_id = shared.worker_id
        self._spans = shared.spans
        self._began_s = asyncio.get_running_loop().time()
        traced = {"trace_id": self._trace.trace_id} if self._trace is not None else {}
        # bound here and not in the context: connections that the session dials outlive it, and log too
        self.log = structlog.get_logger(__name__).bind(session_id=self._ticket.session_id, **traced)

    def ended(self, ending: Ending, took: Mapping[str, float], rounds: Mapping[str, int]) -> None:
        """The session's end: what it took here, and how its guesses went."""
        error_code = None if ending.reason == "finished" else ending.error.code
        self.log.info("session_ended", reason=ending.reason, error_code=error_code, **took, **rounds)
        if self._trace is None:
            return
        self._spans.ended(
            "session",
            self._trace.child(),
            cause=self._trace.span_id,
            seconds=asyncio.get_running_loop().time() - self._began_s,
            kind="server",
            attributes={
                "brigade.session_id": self._ticket.session_id,
                "brigade.worker_id": self._worker_id,
                "gen_ai.request.model": self._ticket.model,
                "brigade.blocks": str(self._ticket.blocks),
                "brigade.reason": ending.reason,
                **{f"brigade.{name}": value for name, value in {**took, **rounds}.items()},
            },
            error_code=error_code if ending.reason in _ERRORS else None,
        )
