from __future__ import annotations

import asyncio
from collections.abc import Sequence

import psutil
import pytest

from coordinator.announcing import Announcer
from protocol.running_beside import running_beside
from tests.support.announced import LISTENS_ON, announced, new_coordinator_id, only
from tests.support.waiting import eventually, eventually_answered
from worker.discovery import announced_coordinators

pytestmark = pytest.mark.timeout(60)


async def test_it_is_found_while_it_runs_and_not_after_it_has_stopped() -> None:
    async with announced(7411) as coordinator_id:
        (found,) = await only(coordinator_id)()
        assert (found.urls, found.ca_fingerprint) == (("https://127.0.0.1:7411",), "ab" * 8)

    async def is_gone() -> bool:
        return coordinator_id not in [each.coordinator_id for each in await announced_coordinators(1.0)]

    await eventually_answered(is_gone)


async def test_addresses_that_come_and_go_are_announced_as_they_are() -> None:
    addresses: list[Sequence[str]] = [()]
    announcer = Announcer(
        new_coordinator_id(),
        "ab" * 32,
        listen_host=LISTENS_ON,
        is_wanted=True,
        addresses=lambda: addresses[-1],
        look_s=0.02,
    )
    async with running_beside(announcer=announcer.announce_forever(7412)):
        await eventually(lambda: "has no address that others know" in announcer.words)
        for address in ("203.0.113.9", "127.0.0.1"):  # the first isn't one of this machine's: it can't be done
            addresses.append((address,))
            told = {"127.0.0.1": "announced on the local network: https://127.0.0.1:7412"}.get(
                address, "not announced"
            )
            await eventually(lambda told=told: announcer.words.startswith(told))
        addresses.append(())
        await eventually(lambda: "has no address" in announcer.words)


@pytest.mark.parametrize(
    ("listen_host", "is_wanted", "says"),
    [("127.0.0.1", True, "it listens on 127.0.0.1 only"), (LISTENS_ON, False, "--no-mdns")],
)
async def test_where_it_is_not_to_be_nothing_is_said_but_why(listen_host: str, is_wanted: bool, says: str) -> None:
    announcer = Announcer(new_coordinator_id(), "ab" * 32, listen_host=listen_host, is_wanted=is_wanted)
    await asyncio.wait_for(announcer.announce_forever(7413), 5)
    assert announcer.words.startswith("not announced on the local network")
    assert says in announcer.words


async def test_where_the_addresses_cannot_be_found_out_it_says_so_and_looks_again() -> None:
    answers: list[Exception | Sequence[str]] = [PermissionError("not here"), psutil.AccessDenied(), ()]

    def look() -> Sequence[str]:
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    announcer = Announcer(
        new_coordinator_id(), "ab" * 32, listen_host=LISTENS_ON, is_wanted=True, addresses=look, look_s=0.02
    )
    async with running_beside(announcer=announcer.announce_forever(7414)):
        await eventually(lambda: "has no address that others know" in announcer.words)


async def test_a_name_of_this_machine_alone_is_not_announced() -> None:
    announcer = Announcer(new_coordinator_id(), "ab" * 32, listen_host="LocalHost", is_wanted=True, look_s=0.02)
    async with running_beside(announcer=announcer.announce_forever(7415)):
        await eventually(lambda: "has no address that others know" in announcer.words)
