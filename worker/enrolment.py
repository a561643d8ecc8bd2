"""Getting in: prove to the coordinator that one knows the join secret, have it prove the same, take credentials.

The requests are in `worker.join_exchange`; here is what a worker makes of the answer, and where it is kept.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog
from cryptography import x509

from protocol.background import uninterrupted
from protocol.backoff import jittered_delay_s
from protocol.error_forms import error_fields
from protocol.errors import BrigadeError, DrainingError, OverloadedError, UnreachableError, WrongSecretError
from protocol.ids import CoordinatorId
from protocol.invites import Invite
from protocol.tls import worker_name
from protocol.worker_rest import JoinGrant
from worker.identity import Identity
from worker.join_exchange import join
from worker.reminders import Reminders

log = structlog.get_logger(__name__)

ENROL_TIMEOUT_S = 15.0
"""For one address, all of it."""
PREVIOUS_KEY_S = 60.0
"""Tickets made just before a rotation are good for so long. For ever, and a key that got out would be too."""
_LONGEST_DELAY_S = 5.0
_LONGEST_ASKED_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a worker has after enrolment: who it is to others, and how it tells who they are."""

    coordinator_url: str
    """The address at which the coordinator is asked, without a slash at its end."""
    coordinator_id: CoordinatorId
    certificate: Path
    key: Path
    ca_pem: str
    session_token: str = field(repr=False)
    ticket_key: bytes = field(repr=False)
    renew_at_s: float
    """Seconds since 1970, UTC: half of the credentials' life."""
    expires_at_s: float


class CredentialsHolder:
    """The credentials in force. The uplink replaces them when they are renewed; the others read `current`."""

    def __init__(
        self, credentials: Credentials, urls: Sequence[str] = (), *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.current = credentials
        self._urls = list(dict.fromkeys([url.rstrip("/") for url in urls] or [credentials.coordinator_url]))
        self._clock = clock
        self._previous_ticket_key = b""
        self._previous_until_s = -math.inf
        self._listeners: list[Callable[[Credentials], None]] = []

    @property
    def ticket_keys(self) -> tuple[bytes, ...]:
        """Keys that verify tickets, oldest first: a ticket made just before a rotation is good too."""
        current = self.current.ticket_key
        return (self._previous_ticket_key, current) if self._clock() < self._previous_until_s else (current,)

    def replace(self, credentials: Credentials) -> None:
        """Put renewed credentials in force and tell those who asked."""
        if credentials.ticket_key != self.current.ticket_key:
            self._previous_ticket_key = self.current.ticket_key
            self._previous_until_s = self._clock() + PREVIOUS_KEY_S
        self.current = credentials
        for listener in self._listeners:
            listener(credentials)

    def try_next_address(self) -> None:
        """Have the coordinator asked at the address after this one, where it can't be reached; they go round."""
        current = self._urls.index(self.current.coordinator_url)
        self.current = replace(self.current, coordinator_url=self._urls[(current + 1) % len(self._urls)])

    def on_replaced(self, listener: Callable[[Credentials], None]) -> None:
        """Call `listener` with every new set of credentials."""
        self._listeners.append(listener)


def utc_now_s() -> float:
    """The clock of a worker: seconds since 1970, UTC."""
    return datetime.now(UTC).timestamp()


async def enrol(
    identity: Identity, urls: Sequence[str], secret: str | Invite, clock: Callable[[], float]
) -> Credentials:
    """Enrol at the first of the coordinator's addresses that lets this worker in.

    Raises:
        UnreachableError: nobody answers at any of them, or not as a Brigade coordinator.
        WrongSecretError: the two sides' secrets differ, or somebody is in between.
        ForbiddenError: the invite can't be used (any more), or this worker isn't let in.
        ProtocolVersionError: the coordinator speaks another version of the protocol.
        ClockSkewError: the two machines' clocks differ too much; both are named.
        StorageError: the certificate can't be written.
    """
    errors: list[BrigadeError] = []
    for url in urls:
        try:
            async with asyncio.timeout(ENROL_TIMEOUT_S):
                grant = await join(url.rstrip("/"), identity, secret, clock)
            # to its end: whoever tries again writes the same file
            return await uninterrupted(asyncio.to_thread(_accepted, grant, url.rstrip("/"), identity, clock()))
        except TimeoutError:
            errors.append(UnreachableError(f"{url} didn't answer within {ENROL_TIMEOUT_S:.0f} s"))
        except BrigadeError as exc:
            errors.append(exc)
    telling = [error for error in errors if not isinstance(error, UnreachableError)]
    if telling or len(errors) == 1:
        raise (telling or errors)[0]
    raise UnreachableError("; ".join(error.message for error in errors))


async def waited_for(ask: Callable[[], Awaitable[T]], *, at_most_s: float | None, tell: Callable[[str], None]) -> T:
    """What `ask` gives once the coordinator is there; tried again and again, for ever if `at_most_s` is None.

    Every new reason for waiting is told, and an old one once a minute.

    Raises:
        BrigadeError: what waiting doesn't help against; or the last reason, when the time is over.
    """
    now_s, rng = asyncio.get_running_loop().time, random.SystemRandom()
    began_s, reminders = now_s(), Reminders(tell)
    n_failures = 0
    while True:
        try:
            return await ask()
        except (UnreachableError, OverloadedError, DrainingError) as exc:
            if at_most_s is not None and now_s() - began_s >= at_most_s:
                raise
            error = exc
        n_failures += 1
        log.info("coordinator_awaited", n_failures=n_failures, **error_fields(error))
        reminders.say(f"the coordinator is away, trying again: {error.message}")
        await asyncio.sleep(asked_delay_s(error) + jittered_delay_s(n_failures, rng, _LONGEST_DELAY_S))


def asked_delay_s(error: BrigadeError) -> float:
    """How long whoever answered asks to be left alone, within reason: nothing is proven yet."""
    return min(error.retry_after_s or 0.0, _LONGEST_ASKED_S)


def _accepted(grant: JoinGrant, url: str, identity: Identity, now_s: float) -> Credentials:
    """Check and keep what a proven coordinator granted. Blocks: it writes the certificate."""
    try:
        certificate = x509.load_pem_x509_certificate(grant.certificate_pem.encode())
        authority = x509.load_pem_x509_certificate(grant.ca_pem.encode())
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        is_ours = identity.owns(certificate) and worker_name(identity.worker_id) in names.get_values_for_type(
            x509.DNSName
        )
        ticket_key = bytes.fromhex(grant.ticket_key)
    except Exception as exc:  # cryptography's errors share no base: parsing, signatures, missing extensions
        raise WrongSecretError(f"{url} granted a certificate that can't be used: {exc}") from exc
    if not is_ours or len(ticket_key) < 32:
        raise WrongSecretError(f"{url} granted credentials that aren't for this worker ({identity.worker_id})")
    identity.save_certificate(grant.certificate_pem)
    life_s = min(grant.session_token_expires_in_s, certificate.not_valid_after_utc.timestamp() - now_s)
    return Credentials(
        coordinator_url=url,
        coordinator_id=grant.coordinator_id,
        certificate=identity.certificate_path,
        key=identity.key_path,
        ca_pem=grant.ca_pem,
        session_token=grant.session_token,
        ticket_key=ticket_key,
        renew_at_s=now_s + life_s / 2,
        expires_at_s=now_s + life_s,
    )
