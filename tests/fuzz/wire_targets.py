"""What comes over the network: frames, messages, bodies, versions, addresses, manifests."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec

import protocol
from coordinator.addresses import check_advertised_url, check_host
from protocol.codec import MAX_BODY_BYTES, check_version, decode_json, decode_message, encode_json, encode_message
from protocol.compatibility import answer_understood_by, error_understood_by, understood_by
from protocol.control_messages import CoordinatorToWorker, WorkerToCoordinator
from protocol.errors import (
    ForbiddenError,
    InvalidRequestError,
    OverLimitError,
    ProtocolError,
    ProtocolVersionError,
    TooLargeError,
    UntrustedFileError,
)
from protocol.frames import MAX_HEADER_BYTES, decode_frame, decode_frames, encode_frame
from protocol.handshake import join_key
from protocol.host_names import rate_key
from protocol.ids import Revision
from protocol.manifest import decode_manifest, encode_manifest, revision_of
from protocol.messages import DataMessage, Step
from tests.fuzz.target import Target
from tests.protocol.samples import BODIES, FRAMES, TO_COORDINATOR, TO_WORKER
from worker.step_inputs import ArrivedStep, payload_of

KEYS = (b"k" * 32,)
REVISION = Revision("ab" * 32)
PROOF_KEY = join_key("a secret that only the two sides know, of course")
NOW_S = 1.8e9
NOW = datetime.fromtimestamp(NOW_S, UTC)


def frames(data: bytes) -> None:
    """One frame; cut or with more behind it, it is none, and what is read is written as it came. Two are two."""
    frame = decode_frame(data)
    again = decode_frame(bytearray(encode_frame(frame.message, frame.payload)))
    assert encode_message(again.message) == encode_message(frame.message)
    assert bytes(again.payload) == bytes(frame.payload)
    for other in (data[: len(data) // 2], data[:-1], data + b"\0"):
        with contextlib.suppress(ProtocolError, TooLargeError):
            decode_frame(other)
            raise AssertionError(f"{len(other)} bytes of a frame of {len(data)} were taken")
    assert [bytes(one.payload) for one in decode_frames(data + data)] == 2 * [bytes(frame.payload)]


def steps(data: bytes) -> None:
    """A frame and, if it holds a step, the tensor in it, as head and as any other worker."""
    frame = decode_frame(data)
    if isinstance(frame.message, Step):
        for is_head in (False, True):
            with contextlib.suppress(ProtocolError):
                tensor = asyncio.run(payload_of(ArrivedStep(frame.message, frame.payload), is_head=is_head))
                assert tensor.shape[0] == frame.message.n_tokens


def _messages(data: bytes, kind: Any, max_bytes: int) -> None:
    message = decode_message(data, kind, max_bytes=max_bytes)
    for version in ("1.0", "1.1"):
        decode_message(encode_message(understood_by(message, version)), kind, max_bytes=2 * max_bytes)
    assert encode_message(decode_message(encode_message(message), kind)) == encode_message(message)


def data_messages(data: bytes) -> None:
    """A message of the data plane: read again it is the same, and so it is for older peers."""
    _messages(data, DataMessage, MAX_HEADER_BYTES)


def control_messages(data: bytes) -> None:
    """A message of the control socket, in the direction that the first byte says."""
    _messages(data[1:], CoordinatorToWorker if data[:1] == b"w" else WorkerToCoordinator, 2**20)


@cache
def body_kinds() -> tuple[type[msgspec.Struct], ...]:
    """Every body of a request or an answer that the protocol has."""
    modules = [found.name for found in pkgutil.iter_modules(protocol.__path__) if found.name.endswith("rest")]
    kinds = {
        kind
        for name in sorted(modules)
        for kind in vars(importlib.import_module(f"protocol.{name}")).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind is not msgspec.Struct
    }
    return tuple(sorted(kinds, key=lambda kind: kind.__name__))


def bodies(data: bytes) -> None:
    """A body of the kind that the first line names, read by the requests' rules."""
    name, _, text = data.partition(b"\n")
    kind = next((kind for kind in body_kinds() if kind.__name__.encode() == name), body_kinds()[len(data) % 7])
    body = decode_json(text, kind, max_bytes=MAX_BODY_BYTES)
    assert decode_json(encode_json(body), kind) == body
    answer_understood_by(body, "1.0")


def _body_seeds() -> list[bytes]:
    known = [type(body).__name__.encode() + b"\n" + encode_json(body) for body in BODIES.values()]
    return known + [kind.__name__.encode() + b"\n{}" for kind in body_kinds()]


def versions(data: bytes) -> None:
    """What a peer says that it speaks: if it is taken, everything can be said to it."""
    version = data.decode("latin-1")
    check_version(version)
    for message, _ in FRAMES.values():
        understood_by(message, version)
    error_understood_by(OverLimitError("too many"), version)


def addresses(data: bytes) -> None:
    """A Host header, a caller's address, and an address that a worker advertises."""
    text = data.decode("latin-1")
    rate_key(text)
    with contextlib.suppress(ForbiddenError):
        check_host(text, frozenset({"localhost"}))
    if not text.isascii() or any(each.isalpha() for each in text.removeprefix("https://")):
        return  # a name, which would be looked up
    asyncio.run(check_advertised_url(text, "192.0.2.1"))


def manifests(data: bytes) -> None:
    """A manifest: one that is taken has one form only."""
    manifest = decode_manifest(data)
    assert encode_manifest(manifest) == data
    decode_manifest(data, expected=revision_of(data))


def _frame_seeds() -> list[bytes]:
    return [encode_frame(message, payload) for message, payload in FRAMES.values()]


def _step_seeds() -> list[bytes]:
    plain = [
        (Step(session_id="s", position=0, n_tokens=2, dtype=dtype, is_last=True), bytes(range(1, 33)))
        for dtype in ("float32", "bfloat16", "float16", "int32")
    ]
    packed = Step(session_id="s", position=0, n_tokens=2, dtype="bfloat16", is_last=True, group=16)
    return [encode_frame(*each) for each in (*plain, (packed, bytes([1, 2, 3, 4] * 10)))]


def _control_seeds() -> list[bytes]:
    to_coordinator = [b"c" + encode_message(message) for message in TO_COORDINATOR.values()]
    return to_coordinator + [b"w" + encode_message(message) for message in TO_WORKER.values()]


def _manifest_seeds() -> list[bytes]:
    file = {"name": "block-00000.safetensors", "sha256": "ab" * 32, "size_bytes": 10, "n_parameters": 5}
    numbers = dict.fromkeys(("hidden_size", "vocab_size", "context_length", "kv_elements_per_token"), 8)
    names = {"architecture": "LlamaForCausalLM", "model_type": "llama", "weights_dtype": "float32"}
    parts: dict[str, Sequence[object]] = {"blocks": [file], "before": [file], "after": [], "auxiliary": [file]}
    whole = {"format_version": 1, "is_chat": True, **names, **numbers, **parts}
    return [msgspec.json.encode(whole, order="sorted")]


WIRE_TARGETS = (
    Target(name="frames", run=frames, seeds=_frame_seeds, allowed=(ProtocolError, TooLargeError)),
    Target(name="steps", run=steps, seeds=_step_seeds, allowed=(ProtocolError, TooLargeError)),
    Target(
        name="data-messages",
        run=data_messages,
        seeds=lambda: [encode_message(message) for message, _ in FRAMES.values()],
        allowed=(ProtocolError, TooLargeError),
    ),
    Target(name="control-messages", run=control_messages, seeds=_control_seeds, allowed=(ProtocolError,)),
    Target(name="bodies", run=bodies, seeds=_body_seeds, allowed=(InvalidRequestError, TooLargeError)),
    Target(name="versions", run=versions, seeds=lambda: [b"1.0", b"1.2"], allowed=(ProtocolVersionError,)),
    Target(
        name="addresses",
        run=addresses,
        seeds=lambda: [b"localhost:7400", b"https://192.0.2.7:7500", b"https://[fe80::1%1]:7500"],
        allowed=(InvalidRequestError,),
    ),
    Target(name="manifests", run=manifests, seeds=_manifest_seeds, allowed=(UntrustedFileError,)),
)
