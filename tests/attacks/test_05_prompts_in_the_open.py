"""Class 5, of prompts and answers: nothing of them is in a log, a status, an error, the database or a state folder.

Defences: events are logged instead of messages, fields of the wrong names are redacted, errors name what is wrong
and not what was sent, generations are recorded by their numbers, histories are kept in memory alone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from client.api import Client
from client.config import ClientConfig
from demo.local_cluster import LocalCluster, polls
from protocol.api_key import ApiKey, api_key_from_text
from protocol.frames import MAX_FRAME_BYTES, decode_frames, encode_frame
from protocol.ids import ModelName, WorkerId
from protocol.messages import PROTOCOL_VERSION, AttachTail, OpenSession, SamplingParams, SessionEnded
from protocol.pinned_http import pinned_session
from protocol.rest import RouteGrant, RouteRequest
from protocol.tls import client_context, worker_name
from tests.support.forked_program import ForkedCluster
from tests.support.ring_generation import ids_payload
from tests.support.tiny_cluster import TINY, add_tiny_model
from tests.support.tiny_tokenizer import ids_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
CANARY = "zq7-CANARY-0wx-4kj"
PROMPT = f"abc {CANARY} def"
WORKERS = {"head": "0:2", "tail": "2:4"}
WITHIN_S = 60.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with ForkedCluster(tmp_path_factory.mktemp("prompts")) as cluster:
        cluster.start_coordinator("--verbose")
        add_tiny_model(cluster, context=1024)
        for name, blocks in WORKERS.items():
            start_worker(cluster, name, blocks)
        cluster.wait_for_workers(len(WORKERS))
        cluster.wait_until_ready(TINY)
        yield cluster


def start_worker(cluster: LocalCluster, name: str, blocks: str) -> None:
    cluster.start_worker(name, "--precision", "float32", "--verbose", "--blocks", blocks)


# ------------------------------------------------------------------ looking


def traces_of_ids(what: str, ids: Sequence[int]) -> dict[str, bytes]:
    """Token ids as they would be seen: in a log, in JSON, in a message, in a tensor."""
    return {
        f"{what}, as text": ", ".join(map(str, ids)).encode(),
        f"{what}, as JSON": ",".join(map(str, ids)).encode(),
        f"{what}, as words": " ".join(map(str, ids)).encode(),
        f"{what}, as msgpack": b"".join(map(msgspec.msgpack.encode, ids)),
        f"{what}, as int32": struct.pack(f"<{len(ids)}i", *ids),
        f"{what}, as int64": struct.pack(f"<{len(ids)}q", *ids),
    }


TRACES = {
    "the prompt": CANARY.encode(),
    "the prompt, in hex": CANARY.encode().hex().encode(),
    "the prompt, in base64": base64.b64encode(CANARY.encode())[:-4],
    **traces_of_ids("the prompt's ids", ids_of(CANARY)),
}


def check_clean(seen: dict[str, bytes], traces: dict[str, bytes] = TRACES) -> None:
    for where, data in seen.items():
        for what, trace in traces.items():
            assert trace not in data, f"{what}: in {where}"


def sinks(cluster: LocalCluster) -> dict[str, bytes]:
    """Every file that a program wrote, its log among them, the database's rows, and what operators are shown."""
    files = {str(path): path.read_bytes() for path in cluster.folder.rglob("*") if path.is_file()}
    assert {f"{name}.log" for name in ("coordinator", *WORKERS)} <= {Path(name).name for name in files}
    with sqlite3.connect(f"file:{cluster.state / 'brigade.db'}?mode=ro", uri=True) as database:
        files["the database's dump"] = "\n".join(database.iterdump()).encode()
    database.close()
    assert b"generations" in files["the database's dump"]
    for command in (("status", "--json"), ("status",), ("key", "list", "--json"), ("plan", "--json")):
        done = cluster.run("coord", *command)
        files[f"coord {' '.join(command)}"] = done.stdout + done.stderr
    return files


def test_the_ways_of_looking_find_what_they_look_for() -> None:
    """So that the tests below can fail."""
    ids = ids_of(PROMPT)
    ways = (
        repr(ids),
        json.dumps({"text": PROMPT}),
        msgspec.json.encode(ids).decode(),
        PROMPT.encode().hex(),
        base64.b64encode(CANARY.encode()).decode(),
        str(ids_payload(ids).hex()),
    )
    for seen in (*(way.encode() for way in ways[:-1]), ids_payload(ids), msgspec.msgpack.encode(ids)):
        with pytest.raises(AssertionError, match="the prompt"):
            check_clean({"here": seen})


# ------------------------------------------------------------------ generations that succeed


def test_not_when_all_goes_well(cluster: LocalCluster) -> None:
    """Fails if anybody logs or keeps a prompt, its ids, an answer, or a stop string."""
    common = ("--model", TINY, "--max-tokens", "6")
    commands = (
        (PROMPT, "--raw"),
        (PROMPT, "--chat", "--system", f"{CANARY} system", "--stop", f"{CANARY} stop"),
    )
    seen = {}
    for i, command in enumerate(commands):
        done = cluster.run("client", "generate", *command, *common)
        assert done.returncode == 0, done.stderr
        seen[f"messages of {i}"] = done.stderr
    answer = asyncio.run(answer_to(cluster, PROMPT))
    assert len(set(answer)) > 5, "an answer that can be told from others"
    check_clean(seen | sinks(cluster), TRACES | traces_of_ids("the answer's ids", answer))


async def answer_to(cluster: LocalCluster, prompt: str) -> tuple[int, ...]:
    config = ClientConfig(url=cluster.url, api_key=client_key(cluster), cache=cluster.folder / "library-cache")
    async with Client(config=config) as client:
        generation = await client.generate(TINY, prompt, max_tokens=12, temperature=1.0, seed=5)
    return generation.token_ids


def client_key(cluster: LocalCluster) -> ApiKey:
    return api_key_from_text((cluster.state / "client.key").read_text().strip())


# ------------------------------------------------------------------ requests that can't be met


def test_not_when_a_request_is_refused(cluster: LocalCluster) -> None:
    """Fails if an error says what was asked instead of what is wrong with it."""
    commands = {
        "too long": (PROMPT * 100, "--model", TINY, "--raw"),
        "too many tokens": (PROMPT, "--model", TINY, "--max-tokens", "1000000"),
        "no such model": (PROMPT, "--model", "other"),
        "no such value": (PROMPT, "--model", TINY, "--temperature", "-1"),
        "too late": (PROMPT, "--model", TINY, "--timeout", "0.001"),
    }
    done = {name: cluster.run("client", "generate", *command) for name, command in commands.items()}
    assert all(one.returncode for one in done.values())
    check_clean({name: one.stdout + one.stderr for name, one in done.items()} | sinks(cluster))


async def test_not_when_the_coordinator_is_sent_nonsense(cluster: LocalCluster) -> None:
    """Fails if the coordinator logs what it can't read. What it answers goes to who sent it, and nowhere else."""
    key = client_key(cluster)
    wanted = {"model": TINY, "n_prompt_tokens": 3, "max_tokens": 2}
    bodies = (
        json.dumps(wanted | {"prompt": CANARY, "token_ids": ids_of(CANARY)}),
        json.dumps(wanted | {"failure": {"code": 1, "worker_id": CANARY}}),
        json.dumps(wanted | {"n_prompt_tokens": ids_of(CANARY)}),
        json.dumps(wanted)[:-1] + CANARY,
    )
    async with pinned_session(cluster.url, key) as session, aiohttp.ClientSession() as http:
        for body in bodies:
            headers = {"Authorization": f"Bearer {key.text()}", "Content-Type": "application/json"}
            async with http.post(
                f"{cluster.url}/v1/routes", data=body, headers=headers, ssl=client_context(session.ca_pem)
            ) as response:
                assert 400 <= response.status < 500
    check_clean(await asyncio.to_thread(sinks, cluster))


# ------------------------------------------------------------------ frames that are wrong


def step_of(**changes: object) -> dict[str, object]:
    step = {"type": "step", "position": 0, "n_tokens": len(ids_of(CANARY)), "dtype": "int32", "is_last": True}
    return step | changes


WRONG: dict[str, dict[str, object]] = {
    "a kind that there isn't": {"type": CANARY},
    "a dtype that there isn't": {"dtype": CANARY},
    "ids in place of a number": {"n_tokens": ids_of(CANARY)},
    "another number of tokens": {"n_tokens": 3},
    "a position that is none": {"position": 7},
}


async def test_not_when_a_worker_is_sent_nonsense(cluster: LocalCluster) -> None:
    """Fails if a worker logs the part of a message that it can't take, or says it to others."""
    ids = ids_of(CANARY)
    unknown = [*ids, 2**31 - 1]
    frames = {name: (step_of(**changes), ids) for name, changes in WRONG.items()}
    frames |= {
        "ids that the model doesn't have": (step_of(n_tokens=len(unknown)), unknown),
        "no frame at all": (None, ids),
    }
    seen = {}
    async with pinned_session(cluster.url, client_key(cluster)) as session:
        for name, (step, sent) in frames.items():
            wanted = RouteRequest(model=ModelName(TINY), n_prompt_tokens=40, max_tokens=4)
            grant = await session.post("/v1/routes", wanted, RouteGrant)
            frame = CANARY.encode() if step is None else raw_frame({**step, "session_id": grant.session_id}, sent)
            seen[name] = await answers_to_frame(grant, frame, sent, client_context(session.ca_pem))
    check_clean(seen | await asyncio.to_thread(sinks, cluster))


def raw_frame(header: dict[str, object], ids: Sequence[int]) -> bytes:
    encoded, payload = msgspec.msgpack.encode(header), ids_payload(ids)
    return struct.pack(">2sBBIQ", b"BG", 1, 0, len(encoded), len(payload)) + encoded + payload


async def answers_to_frame(grant: RouteGrant, frame: bytes, ids: Sequence[int], tls: Any) -> bytes:
    """Open a session and send the frame as its prompt; all that head and tail say until the session is over."""
    tickets = tuple(hop.ticket for hop in grant.hops)
    opening = encode_frame(OpenSession(session_id=grant.session_id, tickets=tickets, deadline_s=20.0))
    sampling = SamplingParams(max_tokens=4)
    attaching = AttachTail(session_id=grant.session_id, ticket=grant.attach_ticket, sampling=sampling)

    async with aiohttp.ClientSession() as http, asyncio.timeout(WITHIN_S):

        async def connected(worker_id: WorkerId, url: str) -> aiohttp.ClientWebSocketResponse:
            return await http.ws_connect(
                url + "/v1/data",
                ssl=tls,
                server_hostname=worker_name(worker_id),
                headers={"Brigade-Protocol": PROTOCOL_VERSION},
                max_msg_size=MAX_FRAME_BYTES,
            )

        head, tail = [await connected(hop.worker_id, hop.url) for hop in (grant.hops[0], grant.hops[-1])]
        await tail.send_bytes(encode_frame(attaching, ids_payload(ids)))
        await head.send_bytes(opening)
        await head.send_bytes(frame)
        said = b""
        async for message in head:
            if message.type != aiohttp.WSMsgType.BINARY:
                break
            said += message.data
            if any(isinstance(one.message, SessionEnded) for one in decode_frames(message.data)):
                break
        await tail.close()
        await head.close()
        return said + str(head.close_code).encode()


# ------------------------------------------------------------------ a hop that is lost


def test_not_when_a_hop_is_lost(cluster: LocalCluster) -> None:
    """Fails if a broken session is logged with what it was about, or kept anywhere but in memory."""
    command = ("generate", PROMPT, "--model", TINY, "--raw", "--max-tokens", "900", "--timeout", "6")
    before = cluster.log("coordinator").count("session_failed")
    for _ in range(5):  # the answer may be over before its worker is
        client = cluster._start("lost", "client", *command)
        for _ in polls(WITHIN_S):
            if (cluster.folder / "lost.log").stat().st_size or client.poll() is not None:
                break
        cluster.kill("tail")
        client.wait(WITHIN_S)
        del cluster.processes["lost"]
        start_worker(cluster, "tail", WORKERS["tail"])
        cluster.wait_until_ready(TINY)
        if cluster.log("coordinator").count("session_failed") > before:
            break
    else:
        raise AssertionError("no generation was broken off")
    check_clean(sinks(cluster))
