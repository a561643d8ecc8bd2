"""A draft model loaded when the worker is connected already, so that nobody takes it for silent meanwhile."""

from __future__ import annotations

from collections.abc import Callable

from worker.byte_sizes import size_text
from worker.config import WorkerConfig
from worker.engine import Engine
from worker.holdings import Holdings
from worker.machine import Machine, beside_draft_model


class DraftStart:
    """What the worker has for blocks: as much as the draft model is expected to leave, then what it leaves."""

    def __init__(self, config: WorkerConfig, *, whole: Machine, expected: Machine, holdings: Holdings) -> None:
        """`whole`: the machine without a draft model. `expected`: what that is expected to leave of it."""
        self.machine = expected
        self._config = config
        self._whole = whole
        self._holdings = holdings
        if config.draft_model is not None:
            holdings.hold_back(
                f"loading the draft model {config.draft_model.resolve().name} first, about "
                f"{size_text(expected.draft_bytes)}; next: find out what is missing of the blocks"
            )

    async def loaded(self, engine: Engine, tell: Callable[[str], None]) -> Machine:
        """Load it, if there is one, and let blocks be loaded.

        Raises:
            ConfigError: it can't be used; the worker should end.
        """
        if self._config.draft_model is not None:
            tell(f"loading the draft model {self._config.draft_model.resolve().name}; next: blocks")
        self.machine = await beside_draft_model(self._config, self._whole, engine, tell)
        self._holdings.hold_back("")
        return self.machine
