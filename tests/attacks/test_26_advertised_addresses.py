"""Class 26. Defences: addresses are checked before they are told to anybody; who dials says nothing before TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coordinator.addresses import check_advertised_url
from coordinator.doctor import dialled
from coordinator.policy.views import worker_info
from protocol.control_messages import Dismiss
from protocol.errors import HopLostError, InvalidRequestError
from protocol.ids import WorkerId
from tests.support.coordinators import running_coordinator
from tests.support.ring import running_ring
from tests.support.scripted_worker import announcement, joined_worker
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually

Checkpoints = Callable[[str], TinyCheckpoint]
ELSEWHERE = "198.51.100.7"
NOBODYS = (
    "https://169.254.169.254:80",
    "https://[::ffff:169.254.169.254]:80",
    "https://[64:ff9b::a9fe:a9fe]:80",
    "https://[2002:a9fe:a9fe::]:80",
    "https://[fd00:ec2::254]:80",
    "https://[fd20:ce::254]:80",
    "https://100.100.100.200:80",
    "https://168.63.129.16:80",
    "https://2852039166:80",
    "https://0xa9fea9fe:80",
    "https://0.0.0.0:5432",
    "https://[::]:5432",
    "https://224.0.0.1:1",
    "https://255.255.255.255:1",
    "https://[fe80::1%25eth0]:1",
    "https://no-such-name.invalid:1",
    "http://203.0.113.5:1",
    "file:///etc/passwd",
    "https://user:password@203.0.113.5:1",
    "https://203.0.113.5:1/admin/v1/keys",
    "https://203.0.113.5:1?x=1",
    "https://203.0.113.5",
    "https://203.0.113.5:0",
    "https://203.0.113.5:99999",
    "https://203.0.113.5:1\r\nHost: evil",
)
LOOPBACK = ("https://127.0.0.1:5432", "https://127.9.9.9:1", "https://[::1]:1", "https://localhost:5432")


@pytest.mark.parametrize("url", NOBODYS)
async def test_no_worker_sends_others_where_no_worker_is(url: str) -> None:
    """Fails if an address isn't looked at in every spelling. Loopback: only of a worker that is there too."""
    for connects_from in (ELSEWHERE, "127.0.0.1"):
        with pytest.raises(InvalidRequestError):
            await check_advertised_url(url, connects_from)


@pytest.mark.parametrize("url", LOOPBACK)
async def test_no_worker_sends_others_to_what_listens_on_their_own_machines(url: str) -> None:
    """Fails if loopback is taken from another machine: databases and dashboards listen there."""
    with pytest.raises(InvalidRequestError, match="loopback"):
        await check_advertised_url(url, ELSEWHERE)


async def test_a_worker_that_announces_one_is_dismissed_and_told_to_nobody(tmp_path: Path) -> None:
    """Fails if the check isn't made before the cluster hears of the address."""
    async with running_coordinator(tmp_path) as coordinator:
        said = announcement("https://169.254.169.254:80")
        async with joined_worker(coordinator, announce=said) as worker:
            error = (await worker.receive(Dismiss)).error
            assert (error.code, "--advertise" in error.message) == ("invalid_request", True)
            await worker.closed()
        record = coordinator.cluster.state.workers.get(worker.worker_id)
        assert record is None or "169.254" not in record.url


@asynccontextmanager
async def database() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A program that speaks no TLS, and what it is sent; it hangs up on what it doesn't understand."""
    seen: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(2**16))
        writer.write(b"-ERR unknown command\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", seen


async def test_who_is_sent_to_a_database_tells_it_nothing(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if a worker, a client or the doctor sends a ticket, a request or a key before it knows who is there."""
    async with database() as (url, seen), running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        peers = ring.workers[0].plane._peers
        assert peers is not None
        for address in (url, ring.workers[1].url):  # the second is a worker, but another than it should be
            with pytest.raises(HopLostError):
                await peers.connection(WorkerId("w-" + "a" * 26), address)
        async with (
            running_coordinator(tmp_path) as coordinator,
            joined_worker(coordinator, port=int(url.rsplit(":", 1)[1])) as worker,
        ):
            await eventually(lambda: [one for one in coordinator.cluster.state.workers.values() if one.url])
            infos = [worker_info(coordinator.cluster.state, worker.worker_id, 0.0)]
            (check,) = await dialled(infos, coordinator.authority.ca_pem)
            assert check.status == "fail", check
        assert len(seen) == 2
        for sent in seen:
            assert sent.startswith(b"\x16\x03"), "a TLS handshake, and nothing else"
            assert b"/v1/data" not in sent
            assert b"HTTP" not in sent.replace(b"http/1.1", b"")
