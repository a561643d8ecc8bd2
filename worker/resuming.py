"""A session that goes on from another: how much of it needn't be run again. Ends with its own first position.

A head compares token ids. The others get hidden states alone, and rely on the hop before them: it was told what is
here, so where its first step begins the text is a new one.
"""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import SessionId
from protocol.messages import Step
from worker.engine import Engine
from worker.history import History
from worker.onward import Onward
from worker.parking import n_rows_held


@dataclass(slots=True, kw_only=True)
class Resumption:
    """What a session has of another, until its own first position is run."""

    engine: Engine
    session_id: SessionId
    history: History
    n_held: int
    """Positions that needn't be run, if the text is the same."""
    onward: Onward | None = None

    async def passed_over(self, step: Step, token_ids: list[int] | None) -> int:
        """How many of a step's first positions needn't be run; if not all of them, this was the end of it.

        `token_ids`: of the step, at a head; None elsewhere.

        Raises:
            NotFoundError: the session isn't open any more.
        """
        n_rows = 0
        if token_ids is not None:
            n_same = step.position + self.history.n_known(step.position, token_ids)
            n_rows = n_rows_held(step.position, step.n_tokens, min(self.n_held, n_same), is_last=step.is_last)
        if n_rows < step.n_tokens:
            await self._go_back_to(step.position + n_rows)
        return n_rows

    async def _go_back_to(self, position: int) -> None:
        if self.onward is not None and position < self.n_held:
            self.onward.send_from(position)
        self.history.forget_states(position)
        await self.engine.truncate(self.session_id, position)
