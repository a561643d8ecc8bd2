"""Class 15. Defences: `tensor_from_bytes` and the messages' checks: dtype, shape, length and values must agree."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import torch

from protocol.frames import FORMAT_VERSION, MAGIC
from protocol.ids import SessionId
from protocol.messages import AttachTail, SamplingParams, SessionEnded, SessionOpened, Step
from protocol.tensors import bytes_from_tensor
from tests.support.fake_worker import fake_worker, opened_by
from tests.support.ring import Ring, running_ring
from tests.support.ring_generation import Generation, generated, ids_payload
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30]
HIDDEN_SIZE = 32


async def still_works(ring: Ring, llama: TinyCheckpoint) -> None:
    await ring.until_clean()
    assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)


def step(n_tokens: int, dtype: Any = "float32", *, position: int = 0) -> Step:
    return Step(session_id=SessionId("s"), position=position, n_tokens=n_tokens, dtype=dtype, is_last=True)


def values(*shape: int, value: float = 0.5) -> bytes:
    return bytes(bytes_from_tensor(torch.full(shape, value))[1])


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (step(3), values(3, HIDDEN_SIZE - 1)),
        (step(3), values(3, HIDDEN_SIZE + 1)),
        (step(2), values(3, HIDDEN_SIZE)),
        (step(3, "bfloat16"), values(3, HIDDEN_SIZE)),
        (step(3, "int32"), ids_payload([1, 2, 3])),
        (step(3), b""),
        (step(3), values(3, HIDDEN_SIZE)[:-1]),
        (step(2**31 - 1), values(1, HIDDEN_SIZE)),
        (step(3), values(3, HIDDEN_SIZE, value=float("nan"))),
        (step(3), values(3, HIDDEN_SIZE, value=float("inf"))),
        (step(3), values(3, HIDDEN_SIZE, value=float("-inf"))),
        (step(3), values(2, HIDDEN_SIZE) + values(1, HIDDEN_SIZE - 1) + values(1, value=float("nan"))),
        (step(3, position=5), values(3, HIDDEN_SIZE)),
        (step(3, position=2**31 - 1), values(3, HIDDEN_SIZE)),
    ],
)
async def test_hidden_states_that_disagree_with_their_header_end_that_session_only(
    checkpoint: Checkpoints, tmp_path: Path, message: Step, payload: bytes
) -> None:
    """Fails if lengths, dtype, positions or finite values aren't checked before the engine gets them."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path, (2,)) as ring, fake_worker(ring.authority, tmp_path) as fake:
        changes = {"head": fake.files.worker_id, "head_url": fake.url}
        wire = await opened_by(ring, fake.files, ring.workers[1], "s", **changes)
        await wire.receive(SessionOpened)
        client = await ring.connect(ring.workers[1])
        sampling = SamplingParams(max_tokens=3)
        attach = AttachTail(session_id=SessionId("s"), ticket=ring.attach_ticket("s"), sampling=sampling)
        await client.send(attach, ids_payload(PROMPT))
        await wire.send(message, payload)
        ended = await wire.receive(SessionEnded)
        assert ended.error.code in ("hop_lost", "stale_epoch", "context_exceeded", "protocol_error"), ended
        await still_works(ring, llama)


@pytest.mark.parametrize(
    "ids",
    [
        [-1, 2, 3],
        [96, 2, 3],
        [2**31 - 1, 2, 3],
        [-(2**31), 2, 3],
    ],
)
async def test_token_ids_outside_the_vocabulary_end_the_session(
    checkpoint: Checkpoints, tmp_path: Path, ids: list[int]
) -> None:
    """Fails if ids reach the embedding unchecked: memory beside it would be read."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, ids)
        await generation.open()
        await generation.attach(PROMPT)
        await generation.step()
        assert (await generation.head.receive(SessionEnded)).error.code == "protocol_error"
        await still_works(ring, llama)


def frame_of(fields: dict[str, Any], payload: bytes = b"") -> bytes:
    """A frame of a header that our own classes would refuse to make."""
    header = msgspec.msgpack.encode(fields)
    return struct.pack(">2sBBIQ", MAGIC, FORMAT_VERSION, 0, len(header), len(payload)) + header + payload


STEP = {"type": "step", "session_id": "s", "position": 0, "n_tokens": 1, "dtype": "int32", "is_last": True}
ATTACH = {"type": "attach", "session_id": "s", "ticket": "x", "sampling": {"max_tokens": 1}}


@pytest.mark.parametrize(
    "fields",
    [
        STEP | {"n_tokens": 0},
        STEP | {"n_tokens": -1},
        STEP | {"n_tokens": 2**31},
        STEP | {"n_tokens": 2**63},
        STEP | {"position": -1},
        STEP | {"n_tokens": 1.5},
        STEP | {"dtype": "float64"},
        STEP | {"dtype": "object"},
        STEP | {"is_last": 1},
        ATTACH | {"sampling": {"max_tokens": 0}},
        ATTACH | {"sampling": {"max_tokens": 1, "temperature": float("nan")}},
        ATTACH | {"sampling": {"max_tokens": 1, "temperature": float("inf")}},
        ATTACH | {"sampling": {"max_tokens": 1, "top_p": 0.0}},
        ATTACH | {"sampling": {"max_tokens": 1, "top_k": -1}},
        ATTACH | {"sampling": {"max_tokens": 1, "stop_token_ids": list(range(65))}},
    ],
)
async def test_numbers_that_cannot_be_end_the_connection(
    checkpoint: Checkpoints, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Fails if a message's ranges aren't checked when it comes off the wire."""
    llama = checkpoint("llama")
    async with running_ring(llama, tmp_path) as ring:
        wire = await ring.connect(ring.workers[0])
        await wire.socket.send_bytes(frame_of(fields))
        assert await wire.closed() == aiohttp.WSCloseCode.PROTOCOL_ERROR
        await still_works(ring, llama)


async def test_what_is_right_gets_through_the_same_way(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """The counterpart: unknown session, good frame; so the connection stays."""
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        wire = await ring.connect(ring.workers[0])
        await wire.socket.send_bytes(frame_of(STEP, ids_payload([1])))
        assert (await wire.receive(SessionEnded)).error.code == "not_found"
