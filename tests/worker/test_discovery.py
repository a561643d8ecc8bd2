from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest
from zeroconf import DNSOutgoing, DNSPointer
from zeroconf.asyncio import AsyncZeroconf
from zeroconf.const import _CLASS_IN, _FLAGS_QR_RESPONSE, _TYPE_PTR

from coordinator.app import utc_now_s
from protocol.errors import UnreachableError, WrongSecretError
from protocol.lan import SERVICE_TYPE, Announced
from protocol.running_beside import running_beside
from tests.support.announced import announced, new_coordinator_id, only
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.strangers import saying_hello
from worker.discovery import found_coordinator
from worker.identity import load_identity
from worker.join_exchange import hello_of

pytestmark = pytest.mark.timeout(60)


async def test_of_several_clusters_the_one_is_found_that_proves_the_secret(tmp_path: Path) -> None:
    lines: list[str] = []
    async with (
        running_coordinator(tmp_path / "a") as other,
        running_coordinator(tmp_path / "b") as ours,
        announced(other.port) as other_id,
        announced(ours.port) as our_id,
    ):
        identity, secret, search = load_identity(tmp_path), join_secret_of(ours), only(other_id, our_id)
        found = await found_coordinator(identity, secret, utc_now_s, lines.append, search)
        assert found.urls == (ours.url,)
        assert found.credentials.coordinator_url == ours.url
        assert [line.split(",")[0] for line in lines] == [
            f"found the coordinator {other_id}",
            f"not this one: the coordinator at {other.url} refuses this worker's join secret: it isn't this "
            "cluster's",
            f"found the coordinator {our_id}",
        ]
        assert not other.cluster.state.workers
        with pytest.raises(WrongSecretError, match="none of the 2 coordinators") as caught:
            await found_coordinator(identity, secrets.token_urlsafe(32), utc_now_s, lines.append, search)
        assert other.url in caught.value.message
        assert ours.url in caught.value.message
        assert secret not in "".join(lines)


async def test_where_nobody_answers_it_says_what_was_found_and_what_to_do(tmp_path: Path) -> None:
    identity, secret = load_identity(tmp_path), secrets.token_urlsafe(32)

    async def nothing() -> tuple[Announced, ...]:
        return ()

    with pytest.raises(UnreachableError, match=r"--no-mdns.*worker join https://HOST:7400"):
        await found_coordinator(identity, secret, utc_now_s, print, nothing)
    async with announced(1) as coordinator_id:
        with pytest.raises(UnreachableError, match=r"https://127\.0\.0\.1:1, though it is announced"):
            await found_coordinator(identity, secret, utc_now_s, print, only(coordinator_id))


def found_at(port: int, *addresses: str) -> Announced:
    return Announced(
        coordinator_id=new_coordinator_id(),
        ca_fingerprint="ab" * 8,
        version="1",
        addresses=addresses or ("127.0.0.1",),
        port=port,
    )


async def test_beside_another_cluster_one_that_is_away_may_be_ours_and_is_waited_for(tmp_path: Path) -> None:
    identity, secret = load_identity(tmp_path), secrets.token_urlsafe(32)
    async with running_coordinator(tmp_path) as other:

        async def search() -> tuple[Announced, ...]:
            return found_at(other.port), found_at(1)

        with pytest.raises(UnreachableError, match=r"none of the 2 .*refuses this worker's .*:1, though"):
            await found_coordinator(identity, secret, utc_now_s, print, search)


async def test_who_keeps_a_worker_waiting_does_not_keep_it_from_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("not this one"):
            monkeypatch.undo()  # the real one has all the time that it needs

    monkeypatch.setattr("worker.discovery.JOINED_S", 0.1)
    async with (
        running_coordinator(tmp_path) as ours,
        saying_hello(tmp_path, await hello_of(ours.url), stalls=True) as stranger_url,
    ):

        async def search() -> tuple[Announced, ...]:
            return found_at(int(stranger_url.rpartition(":")[2])), found_at(ours.port)

        identity = load_identity(tmp_path)
        found = await found_coordinator(identity, join_secret_of(ours), utc_now_s, tell, search)
        assert found.urls == (ours.url,)
        assert any("let nobody in within" in line for line in lines)


async def test_a_name_that_is_none_of_ours_ends_no_search() -> None:
    """Anybody may answer for our service with a name that can't be looked up."""
    pointer = DNSPointer(SERVICE_TYPE, _TYPE_PTR, _CLASS_IN, 120, "evil._http._tcp.local.")

    async def say() -> None:
        async with AsyncZeroconf(interfaces=["127.0.0.1"]) as network:
            while True:
                answer = DNSOutgoing(_FLAGS_QR_RESPONSE)
                answer.add_answer_at_time(pointer, 0)
                network.zeroconf.async_send(answer)
                await asyncio.sleep(0.1)

    async with running_beside(rogue=say()), announced(7416) as coordinator_id:
        (found,) = await only(coordinator_id)()
        assert found.urls == ("https://127.0.0.1:7416",)
