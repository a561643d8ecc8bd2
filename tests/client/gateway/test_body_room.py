"""How much of bodies is kept: by the bytes that came, not by what is announced, nor by how they were packed."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import re
import zlib
from typing import Any

import pytest

from client.gateway import body_room
from client.gateway.bodies import BODY_TIMEOUT_S
from client.gateway.body_room import BodyRoom
from protocol.errors import OverloadedError
from protocol.ids import KeyId
from tests.client.gateway.test_app import CHAT, LONG, SHORT
from tests.support.gateways import ServedGateway
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

ONE, OTHER, THIRD = KeyId("one"), KeyId("other"), KeyId("third")
N_MOST = 2**20
PACKED = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
LONG_TEXT = random.Random(1).randbytes(20_000).hex()
PADDED = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": LONG_TEXT}]}).encode()
"""Packed, it is no shorter than half of it."""


@pytest.fixture
def small_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_room, "MOST_OF_ONE_BYTES", N_MOST)
    monkeypatch.setattr(body_room, "MOST_BYTES", 2 * N_MOST)


async def begun(served: ServedGateway, n_bytes: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request whose body is to follow."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    head = ["Host: 127.0.0.1", "Content-Type: application/json", f"Content-Length: {n_bytes}"]
    writer.write("\r\n".join([f"POST {CHAT} HTTP/1.1", *head, "", ""]).encode())
    return reader, writer


def asked(n_characters: int) -> dict[str, Any]:
    return SHORT | {"messages": [{"role": "user", "content": "a" * n_characters}]}


@pytest.mark.usefixtures("small_room")
async def test_a_key_has_its_part_and_all_together_have_the_room() -> None:
    room = BodyRoom()
    with room.kept(ONE, N_MOST) as one, room.kept(OTHER, 0) as other, room.kept(THIRD, 0) as third:
        one.is_of(N_MOST)
        with pytest.raises(OverloadedError, match=r"a body of 1 bytes finds no room.*1,048,576.*with this API key"):
            room.kept(ONE, 1).__enter__()
        other.is_of(N_MOST - 10)
        third.is_of(10)
        with pytest.raises(OverloadedError, match=r"a body of 11 bytes .* 2,097,142 bytes .* of all its users"):
            third.is_of(11)
        other.is_of(7)
        third.is_of(11)
    with room.kept(ONE, N_MOST) as one:
        one.is_of(N_MOST)


@pytest.mark.usefixtures("small_room")
async def test_bodies_find_room_or_are_refused_before_they_are_read(served: ServedGateway) -> None:
    """One takes room until its request is answered, or its caller has gone."""
    data = json.dumps(LONG).encode().ljust(N_MOST - 4000)
    _, writer = await begun(served, len(data))
    writer.write(data)
    await eventually(lambda: served.sessions_on_workers() > 0)
    reader, refused = await begun(served, 5000)
    async with asyncio.timeout(30):
        assert (await reader.readline()).split()[1] == b"503"
        assert b"retry-after: 2" in (await reader.readuntil(b"\r\n\r\n")).lower()
    assert (await served.post(CHAT, SHORT)).status == 200
    for one in (writer, refused):
        one.transport.abort()
    await eventually(lambda: served.gateway.gate.n_inside == 0)
    assert (await served.post(CHAT, asked(5000))).status == 400  # longer than the context: it was read


@pytest.mark.usefixtures("small_room")
async def test_what_is_only_announced_keeps_nobody_out(served: ServedGateway) -> None:
    _, writer = await begun(served, N_MOST)
    await eventually(lambda: served.gateway.gate.n_inside == 1)
    assert (await served.post(CHAT, SHORT)).status == 200
    writer.transport.abort()
    await eventually(lambda: served.gateway.gate.n_inside == 0)


@pytest.mark.usefixtures("small_room")
async def test_a_packed_body_takes_as_much_room_as_what_is_in_it(served: ServedGateway) -> None:
    large, small = (gzip.compress(json.dumps(body).encode()) for body in (asked(N_MOST), SHORT))
    assert len(large) < N_MOST / 100
    refused = await served.post(CHAT, large, headers=PACKED)
    assert (refused.status, "finds no room" in refused.json()["error"]["message"]) == (503, True)
    assert (await served.post(CHAT, small, headers=PACKED)).status == 200


@pytest.mark.usefixtures("small_room")
async def test_a_body_that_doesnt_say_how_long_it_is_takes_no_more_than_it_has(served: ServedGateway) -> None:
    data = io.BytesIO(json.dumps(SHORT).encode())

    async def pieces() -> Any:
        yield data.read()

    headers = {"Content-Type": "application/json"}
    async with served.http.post(served.gateway.url + CHAT, data=pieces(), headers=headers) as response:
        assert response.status == 200, await response.text()


async def test_a_body_that_isnt_packed_as_it_says_is_the_callers_fault(served: ServedGateway) -> None:
    answer = await served.post(CHAT, b"garbage", headers=PACKED)
    assert answer.status == 400
    assert "can't be unpacked: it isn't gzip" in answer.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b" \n"])
async def test_a_body_that_isnt_there_is_not_called_cut_short(served: ServedGateway, body: bytes) -> None:
    answer = await served.post(CHAT, body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.json()["error"]["message"] == "the body is empty; the request belongs into it, as JSON"


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        # all of the length that was announced, but not all of what was packed
        (
            gzip.compress(PADDED)[:-3000],
            r"^the body ends in the middle of its JSON, after [\d,]+ bytes: it was cut sh",
        ),
        (
            zlib.compress(PADDED)[:-3000],
            r"^the body breaks off: [\d,]+ bytes of it could be read.* deflate .*again$",
        ),
        (
            b"".join([gzip.compress(PADDED)[:-3000], b"\xff" * 3000]),
            r"^the body breaks off: .* isn't gzip as the head",
        ),
    ],
)
async def test_a_packed_body_that_breaks_off_says_how_far_it_could_be_read(
    served: ServedGateway, packed: bytes, words: str
) -> None:
    """In two parts, so that the first is unpacked before the other comes."""
    encoding = "deflate" if packed[:1] == b"x" else "gzip"
    reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    head = [
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Encoding: {encoding}",
        "Connection: close",
    ]
    head.append(f"Content-Length: {len(packed)}")
    start = "\r\n".join([f"POST {CHAT} HTTP/1.1", *head, "", ""]).encode()
    writer.write(start + packed[: len(packed) // 2])  # in one piece, so that who has the start has this
    await eventually(lambda: served.gateway.gate.n_inside > 0)
    writer.write(packed[len(packed) // 2 :])
    async with asyncio.timeout(BODY_TIMEOUT_S / 4):
        answer = await reader.read()
    writer.close()
    assert answer.split()[1] == b"400"
    assert re.search(words, json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"])


@pytest.mark.parametrize("piece", [b"zz\r\n", b"5\r\nabcdeXX\r\n"])
async def test_a_body_that_breaks_after_it_has_begun_is_answered_at_once(
    served: ServedGateway, piece: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.gateway.port)
    head = ["Host: 127.0.0.1", "Content-Type: application/json", "Transfer-Encoding: chunked"]
    writer.write("\r\n".join([f"POST {CHAT} HTTP/1.1", *head, "", '6\r\n{"mode\r\n']).encode())
    await writer.drain()
    await eventually(lambda: served.gateway.gate.n_inside > 0)
    writer.write(piece)
    async with asyncio.timeout(BODY_TIMEOUT_S / 4):
        answer = await reader.read()  # to the end: there is one answer, and the connection is over
    assert answer.split()[1] == b"400"
    assert answer.count(b"HTTP/1.1") == 1
    assert b"isn't chunked as the headers say" in answer
    writer.transport.abort()
    await eventually(lambda: served.gateway.gate.n_inside == 0)
