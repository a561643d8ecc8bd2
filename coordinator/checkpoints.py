"""Have SQLite's write-ahead log moved into the file while others write, so that no route waits for the disk."""

from __future__ import annotations

import structlog

from coordinator.transactions import Transactions
from protocol.errors import StorageError

log = structlog.get_logger(__name__)


async def checkpoint_forever(transactions: Transactions) -> None:
    """Checkpoint whenever one is due, until cancelled; while the database can't be used, that is logged."""
    while True:
        await transactions.checkpoint_due.wait()
        try:
            await transactions.checkpoint()
        except StorageError as error:  # due again once as much was written again
            log.warning("checkpoint_failed", error_message=error.message)
