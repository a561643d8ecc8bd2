"""Credentials renewed: at half of their life, and when the coordinator no longer takes them."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable

import structlog

from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, UnauthenticatedError
from worker.enrolment import Credentials, CredentialsHolder
from worker.reminders import Reminders

log = structlog.get_logger(__name__)

_RETRY_S = 5.0
_NAP_S = 30.0
REFUSED_S = 30.0
"""Between two tries of a worker that isn't let in any more: somebody has to give it another secret."""


class Renewal:
    """Has a worker enrol again. `on_new_key` is awaited when tickets are made with another key from then on."""

    def __init__(
        self,
        credentials: CredentialsHolder,
        *,
        enrol: Callable[[], Awaitable[Credentials]],
        on_new_key: Callable[[], Awaitable[None]],
        reminders: Reminders,
        clock: Callable[[], float],
    ) -> None:
        self._credentials = credentials
        self._enrol = enrol
        self._on_new_key = on_new_key
        self._reminders = reminders
        self._clock = clock
        self._renewing = asyncio.Lock()

    async def renew(self, stale: Credentials) -> None:
        """Enrol again, unless that was done meanwhile: both loops may come to want it at the same time."""
        async with self._renewing:
            if self._credentials.current is stale:
                self._credentials.replace(await self._enrol())
                log.info("credentials_renewed")
        if not hmac.compare_digest(self._credentials.current.ticket_key, stale.ticket_key):
            await self._on_new_key()

    async def renew_in_time(self) -> None:
        """Enrol again at half-life, and on failure every few seconds from then on; for ever."""
        retry_at_s = 0.0
        while True:
            wait_s = max(self._credentials.current.renew_at_s, retry_at_s) - self._clock()
            if wait_s > 0:  # in short naps: the clock may be set meanwhile
                await asyncio.sleep(min(wait_s, _NAP_S))
                continue
            try:
                await self.renew(self._credentials.current)
            except BrigadeError as exc:
                retry_s = retry_delay_s(exc, _RETRY_S)
                retry_at_s = self._clock() + retry_s
                log.warning("renewal_failed", retry_in_s=retry_s, **error_fields(exc))
                left_h = (self._credentials.current.expires_at_s - self._clock()) / 3600
                self._reminders.say(
                    f"the credentials, good for {max(0.0, left_h):.0f} h more, can't be renewed: {exc.message}"
                )


def retry_delay_s(error: BrigadeError, usual_s: float) -> float:
    """How long to wait after this error: as it says itself, and no shorter where a person has to do something."""
    is_refused = isinstance(error, UnauthenticatedError) and error.code != UnauthenticatedError.code
    return max(error.retry_after_s or 0.0, REFUSED_S if is_refused else usual_s)
