"""Class 14. Defences: the lengths that a message states are checked before anything is allocated or waited for."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from pathlib import Path

import aiohttp
import msgspec
import pytest

from protocol.codec import MAX_BODY_BYTES, MAX_CONTROL_BYTES, encode_message
from protocol.control_messages import Dismiss
from protocol.frames import MAX_JOINED_BYTES, MAX_PAYLOAD_BYTES, encode_frame
from protocol.ids import SessionId
from protocol.messages import PROTOCOL_VERSION, CloseSession
from protocol.tls import COORDINATOR_NAME, client_context, worker_name
from tests.support.coordinators import running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.raw_socket import raw_socket, resident_bytes
from tests.support.ring import Ring, Wire, running_ring
from tests.support.ring_generation import generated
from tests.support.scripted_worker import announcement, connected_worker, joined_worker
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.server import MAX_CLIENT_FRAME_BYTES

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30]
CLOSE = CloseSession(session_id=SessionId("s"), reason="lost")
HUGE = 2**62
ALLOWED_GROWTH_BYTES = 100 * 2**20
TOO_BIG = aiohttp.WSCloseCode.MESSAGE_TOO_BIG
PROTOCOL_ERROR = aiohttp.WSCloseCode.PROTOCOL_ERROR


def prefix(n_header: int, n_payload: int) -> bytes:
    return struct.pack(">2sBBIQ", b"BG", 1, 0, n_header, n_payload)


async def still_works(ring: Ring, llama: TinyCheckpoint) -> None:
    assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)
    await ring.until_clean()


@pytest.mark.parametrize("n_bytes", [MAX_CLIENT_FRAME_BYTES + 1, 2**40, HUGE])
async def test_a_data_message_over_the_cap_is_refused_by_its_length(
    checkpoint: Checkpoints, tmp_path: Path, n_bytes: int
) -> None:
    """Fails without `max_msg_size`: only the length is ever sent, so whoever waits for the rest waits for ever."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path) as ring:
        worker = ring.workers[0]
        before = resident_bytes()
        raw = await raw_socket(
            int(worker.url.rsplit(":", 1)[1]),
            "/v1/data",
            client_context(ring.authority.ca_pem),
            worker_name(worker.worker_id),
            Brigade_Protocol=PROTOCOL_VERSION,
        )
        await raw.claim(n_bytes, begin=b"BG")
        assert await raw.close_code() == TOO_BIG
        assert resident_bytes() - before < ALLOWED_GROWTH_BYTES
        await still_works(ring, llama)


@pytest.mark.parametrize("n_bytes", [MAX_CONTROL_BYTES + 1, HUGE])
async def test_a_control_message_over_the_cap_is_refused_by_its_length(tmp_path: Path, n_bytes: int) -> None:
    """Fails without `max_msg_size` on the control socket."""
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        before = resident_bytes()
        raw = await raw_socket(
            coordinator.port,
            "/v1/worker/control",
            client_context(grant.ca_pem),
            COORDINATOR_NAME,
            Authorization=f"Bearer {grant.session_token}",
        )
        await raw.claim(n_bytes)
        assert await raw.close_code() == TOO_BIG
        assert resident_bytes() - before < ALLOWED_GROWTH_BYTES


@pytest.mark.parametrize("n_bytes", [MAX_BODY_BYTES + 1, HUGE])
async def test_a_request_body_over_the_cap_is_refused_by_its_length(tmp_path: Path, n_bytes: int) -> None:
    """Fails if neither the length that is said nor `client_max_size` counts: the body never comes."""
    async with running_coordinator(tmp_path) as coordinator:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            coordinator.port,
            ssl=client_context(coordinator.authority.ca_pem),
            server_hostname=COORDINATOR_NAME,
        )
        writer.write(
            f"POST /v1/join/challenge HTTP/1.1\r\nHost: 127.0.0.1:{coordinator.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {n_bytes}\r\n\r\n".encode()
        )
        writer.write(b" " * (MAX_BODY_BYTES + 2**18))
        async with asyncio.timeout(10):
            assert (await reader.readline()).split()[1] == b"413"
        writer.close()


@pytest.mark.parametrize(
    "frame",
    [
        prefix(10, MAX_PAYLOAD_BYTES + 1),
        prefix(10, 2**64 - 1),
        prefix(2**32 - 1, 0),
        prefix(2**32 - 1, 2**64 - 1) + b"x" * 100,
        encode_frame(CLOSE)[:-1],
        encode_frame(CLOSE)[:7],
        encode_frame(CLOSE, b"abc")[:-2],
        encode_frame(CLOSE) + b"x",
        encode_frame(CLOSE) * (MAX_JOINED_BYTES // len(encode_frame(CLOSE)) + 1),
        prefix(6, 0) + b"\xdd\xff\xff\xff\xff\x00",
        prefix(6, 0) + b"\xdf\xff\xff\xff\xff\x00",
        prefix(5, 0) + b"\xdb\xff\xff\xff\xff",
        prefix(3000, 0) + b"\x91" * 3000,
    ],
)
async def test_frames_that_lie_about_their_lengths_end_their_connection_only(
    checkpoint: Checkpoints, tmp_path: Path, frame: bytes
) -> None:
    """Fails if `decode_frame` believes a length (a peer's `new char[n]` from the wire), or takes half a frame."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path) as ring:
        before = resident_bytes()
        wire: Wire = await ring.connect(ring.workers[0])
        await wire.socket.send_bytes(frame)
        assert await wire.closed() == PROTOCOL_ERROR
        assert resident_bytes() - before < ALLOWED_GROWTH_BYTES
        await still_works(ring, llama)


async def test_half_a_message_and_then_nothing_holds_no_session(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if the end of a connection in the middle of a message isn't its end."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path) as ring:
        worker = ring.workers[0]
        raw = await raw_socket(
            int(worker.url.rsplit(":", 1)[1]),
            "/v1/data",
            client_context(ring.authority.ca_pem),
            worker_name(worker.worker_id),
            Brigade_Protocol=PROTOCOL_VERSION,
        )
        await raw.claim(1000, begin=b"BG\x01")
        raw._writer.close()
        await still_works(ring, llama)


def _with_huge_array() -> bytes:
    data = encode_message(announcement())
    return data.replace(b"\xa5files\x90", b"\xa5files\xdd\xff\xff\xff\xff", 1)


async def test_a_list_longer_than_its_message_dismisses_the_worker(tmp_path: Path) -> None:
    """Fails if a list is allocated by the length that it states: 4 billion entries here."""
    lie = _with_huge_array()
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.decode(lie)
    async with running_coordinator(tmp_path) as coordinator:
        key = WorkerKey()
        grant = await enrolled(coordinator, key)
        before = resident_bytes()
        async with connected_worker(coordinator, key, grant, announce=lie) as worker:  # type: ignore[arg-type]
            assert (await worker.receive(Dismiss)).error.code == "protocol_error"
        assert resident_bytes() - before < ALLOWED_GROWTH_BYTES
        async with joined_worker(coordinator):
            pass
