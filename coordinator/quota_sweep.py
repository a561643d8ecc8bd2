"""Give back, every few seconds, what is held for generations that nobody opened or nobody reported."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime

import structlog

from coordinator.openings import Openings
from coordinator.quota_book import QuotaBook
from protocol.background import uninterrupted
from protocol.errors import StorageError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

SWEEP_S = 2.0
"""Against the 10 s that the reservation of a failed generation waits."""


async def expire_forever(
    book: QuotaBook,
    openings: Openings,
    clock: Callable[[], float],
    lost: Callable[[], Collection[WorkerId]],
    *,
    every_s: float = SWEEP_S,
) -> None:
    """Look every `every_s` seconds until cancelled; while the database can't be used, that is logged.

    `lost`: the workers that nobody has heard of for too long.
    """
    has_begun = False
    while True:
        try:
            if not has_begun:
                await uninterrupted(book.begin_anew(datetime.fromtimestamp(clock(), UTC)))
                has_begun = True
            await openings.take_lost(lost())
            await openings.save()
            n_expired = await expire_due(book, clock)
        except StorageError as error:
            log.warning("reservations_not_expired", error_message=error.message)
            n_expired = 0
        if n_expired:
            log.info("reservations_expired", n_expired=n_expired)
        await asyncio.sleep(every_s)


async def expire_due(book: QuotaBook, clock: Callable[[], float]) -> int:
    """Give back all that is due, in short transactions between which others get their turn; how many reservations.

    Raises:
        StorageError: the database can't be used.
    """
    n_expired = 0
    while n := await uninterrupted(book.expire(datetime.fromtimestamp(clock(), UTC))):
        n_expired += n
    return n_expired
