"""Finding the coordinator on the local network: who announces one (mDNS), and who of them can prove the secret.

Anybody may announce anything. So each that is announced is joined as any other address would be, and the first that
proves that it knows the secret is the one: who announces falsely is refused, and learns nothing by which to join.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from protocol.errors import BrigadeError, DrainingError, OverloadedError, UnreachableError
from protocol.invites import Invite
from protocol.lan import SERVICE_TYPE, Announced, announced_from
from worker.enrolment import Credentials, enrol
from worker.goodbye import granted
from worker.identity import Identity
from worker.join_exchange import hello_of

SEARCH_S = 5.0
SETTLED_S = 1.0
"""Others who are there too answer within this time of the first."""
DETAILS_S = 2.0
ANSWER_S = 3.0
"""An address that doesn't answer by then isn't tried: a machine may announce networks that nobody else is on."""
JOINED_S = 20.0
"""One coordinator, at all of its addresses together: who announces falsely doesn't keep a worker from the next."""
MAX_FOUND = 16
_PASSING = (UnreachableError, OverloadedError, DrainingError)
_BY_HAND = "give its address: worker join https://HOST:7400"


async def announced_coordinators(search_s: float = SEARCH_S) -> tuple[Announced, ...]:
    """Those that are announced, in the order in which they were heard of; 16 at most.

    Raises:
        UnreachableError: this machine can't be asked to search.
    """
    details: dict[str, AsyncServiceInfo] = {}
    heard = asyncio.Event()

    def on_change(*, name: str, state_change: zeroconf.ServiceStateChange, **_: object) -> None:
        if state_change is not zeroconf.ServiceStateChange.Removed and len(details) < MAX_FOUND:
            with suppress(zeroconf.BadTypeInNameException):  # anybody may announce any name
                details[name] = AsyncServiceInfo(SERVICE_TYPE, name)
                heard.set()

    try:
        async with AsyncZeroconf() as network:
            async with AsyncServiceBrowser(network.zeroconf, SERVICE_TYPE, handlers=[on_change]):
                with suppress(TimeoutError):
                    async with asyncio.timeout(search_s):
                        await heard.wait()
                        await asyncio.sleep(SETTLED_S)
            async with asyncio.TaskGroup() as tasks:
                for each in details.values():
                    tasks.create_task(each.async_request(network.zeroconf, 1000 * DETAILS_S), name="mdns-details")
    except (OSError, RuntimeError, zeroconf.Error) as exc:  # RuntimeError: there are no interfaces
        raise UnreachableError(
            f"the local network can't be searched for a coordinator ({exc}): {_BY_HAND}"
        ) from exc
    return tuple(found for each in details.values() if (found := announced_from(each)) is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundCoordinator:
    """A coordinator on this network that proved the secret, and let this worker in."""

    urls: tuple[str, ...]
    """That one first at which it did."""
    credentials: Credentials


async def found_coordinator(
    identity: Identity,
    secret: str | Invite,
    clock: Callable[[], float],
    tell: Callable[[str], None],
    search: Callable[[], Awaitable[Sequence[Announced]]] = announced_coordinators,
) -> FoundCoordinator:
    """The coordinator on this network that lets this worker in: the worker has enrolled there then.

    Raises:
        UnreachableError: none is announced, or one of those that are doesn't answer.
        BrigadeError: none lets this worker in; as what the only one said, or all of what they said.
    """
    found = await search()
    if not found:
        raise UnreachableError(
            f"no coordinator is announced on this network (searched for {SEARCH_S:.0f} s). See that `coord serve` "
            "runs there with --listen 0.0.0.0:7400 and without --no-mdns, and that UDP port 5353 passes the "
            f"firewalls; or {_BY_HAND}"
        )
    refusals: list[BrigadeError] = []
    for each in found:
        tell(f"found the coordinator {each}")
        try:
            return await _joined(each, identity, secret, clock)
        except BrigadeError as exc:
            refusals.append(exc)
            if len(found) > 1:
                tell(f"not this one: {exc.message}")
    raise _one_of(refusals, found)


async def _joined(
    announced: Announced, identity: Identity, secret: str | Invite, clock: Callable[[], float]
) -> FoundCoordinator:
    urls = await _answering(announced.urls)
    if not urls:
        raise UnreachableError(f"nobody answers at {', '.join(announced.urls)}, though it is announced")

    async def enrolled() -> Credentials:
        async with asyncio.timeout(JOINED_S):
            return await enrol(identity, urls, secret, clock)

    try:
        credentials = await granted(enrolled)
    except TimeoutError as exc:
        where = ", ".join(urls)
        raise UnreachableError(f"who answers at {where} let nobody in within {JOINED_S:.0f} s") from exc
    used = credentials.coordinator_url
    return FoundCoordinator(urls=(used, *(url for url in urls if url != used)), credentials=credentials)


async def _answering(urls: Sequence[str]) -> tuple[str, ...]:
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(_answers(url), name=f"greet-{url}") for url in urls]
    return tuple(url for url, task in zip(urls, asked, strict=True) if task.result())


async def _answers(url: str) -> bool:
    try:
        async with asyncio.timeout(ANSWER_S):
            await hello_of(url)
    except (TimeoutError, BrigadeError):
        return False
    return True


def _one_of(refusals: Sequence[BrigadeError], found: Sequence[Announced]) -> BrigadeError:
    """What to say if there were several: all of it; as an error to wait out if any of them may yet be ours."""
    if len(refusals) == 1:
        return refusals[0]
    kind = type(next((error for error in refusals if isinstance(error, _PASSING)), refusals[0]))
    said = "; ".join(f"{each.coordinator_id}: {error.message}" for each, error in zip(found, refusals, strict=True))
    waits = [error.retry_after_s for error in refusals if error.retry_after_s is not None]
    return kind(
        f"none of the {len(found)} coordinators on this network lets this worker in. {said}. If one of them is "
        "meant, name it: worker join https://HOST:7400",
        retry_after_s=min(waits, default=None),
    )
