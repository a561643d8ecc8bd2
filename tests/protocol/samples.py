"""One of every message, ticket and body of protocol 1.0, with its optional fields set (`full`) and left alone.

`python -m tests.protocol.samples FOLDER` writes them as the `protocol` package that it finds encodes them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from protocol.cluster_rest import AddModelRequest, ClusterStatus, WorkerInfo
from protocol.control_messages import (
    Announce,
    Assign,
    DeviceReport,
    Dismiss,
    Drain,
    FilesHeld,
    GenerationReport,
    Heartbeat,
    Leaving,
    SpanAssignment,
    SpanReport,
    SpanStatus,
)
from protocol.errors import ErrorBody
from protocol.ids import BlockRange, FileHash, SessionId, WorkerId
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo, KeyList
from protocol.messages import (
    AttachTail,
    CloseSession,
    Credit,
    FeedToken,
    OpenSession,
    SamplingParams,
    SessionEnded,
    SessionOpened,
    Step,
    Token,
)
from protocol.rest import (
    BlockCoverage,
    ErrorAnswer,
    Hello,
    ModelInfo,
    ModelList,
    RouteGrant,
    RouteHop,
    RouteRequest,
)
from protocol.tickets import AttachTicket, SessionToken, Ticket
from protocol.worker_rest import (
    Challenge,
    ChallengeRequest,
    JoinGrant,
    JoinRequest,
    Source,
    SourcesAnswer,
    SourcesRequest,
)
from tests.protocol.recording import Samples

HASH = "ab" * 32
SESSION = SessionId("5e55" * 8)
ONE, OTHER = WorkerId("w-" + "1" * 26), WorkerId("w-" + "2" * 26)
BLOCKS = BlockRange(0, 5)
PAYLOAD = bytes(range(256))

_ERROR = ErrorBody(code="overloaded", message="7 of 7 places are taken", retry_after_s=1.5)
_BARE_ERROR = ErrorBody(code="hop_lost", message="worker 2 is gone")
_DEVICE = DeviceReport(
    device="cpu",
    precision="bfloat16",
    n_threads=4,
    memory_bytes=2**33,
    bandwidth_bytes_per_s=1.5e10,
    flops_per_s=1e11,
)
_READY = SpanStatus(model="m", revision=HASH, blocks=BLOCKS, state="ready", reason="", progress=1.0)
_LOADING = SpanStatus(model="m", revision=HASH, blocks=BLOCKS, state="loading", reason="reading weights")
_WANTED = SpanAssignment(model="m", revision=HASH, blocks=BLOCKS)
_SAMPLING = SamplingParams(
    temperature=0.7,
    top_p=0.9,
    top_k=40,
    min_p=0.05,
    repetition_penalty=1.1,
    seed=2**62,
    stop_token_ids=(0, 2),
    max_tokens=64,
)

FRAMES: dict[str, tuple[Any, bytes]] = {
    "open": (OpenSession(session_id=SESSION, tickets=("a.b", "c.d"), deadline_s=59.5), b""),
    "attach-full": (AttachTail(session_id=SESSION, ticket="a.b", sampling=_SAMPLING), PAYLOAD),
    "attach": (AttachTail(session_id=SESSION, ticket="a.b", sampling=SamplingParams(max_tokens=1)), PAYLOAD),
    "step-ids": (Step(session_id=SESSION, position=0, n_tokens=64, dtype="int32", is_last=True), PAYLOAD),
    "step-hidden": (Step(session_id=SESSION, position=7, n_tokens=2, dtype="bfloat16", is_last=False), PAYLOAD),
    "feed": (FeedToken(session_id=SESSION, position=65, token_id=49_151), b""),
    "close": (CloseSession(session_id=SESSION, reason="cancelled"), b""),
    "opened": (SessionOpened(session_id=SESSION), b""),
    "credit": (Credit(session_id=SESSION, n_steps=2), b""),
    "ended-full": (SessionEnded(session_id=SESSION, worker_id=OTHER, error=_ERROR), b""),
    "ended": (SessionEnded(session_id=SESSION, worker_id=OTHER, error=_BARE_ERROR), b""),
    "token-full": (Token(session_id=SESSION, index=3, token_id=2, finish_reason="stop"), b""),
    "token": (Token(session_id=SESSION, index=0, token_id=17), b""),
}
"""Of the data plane: message and payload."""

TO_COORDINATOR: dict[str, Any] = {
    "announce-full": Announce(
        url="https://127.0.0.1:7500",
        hostname="one",
        version="0.1.0",
        device=_DEVICE,
        epoch=3,
        spans=(_READY, _LOADING),
        files=(FileHash(HASH),),
        pinned_model="m",
        pinned_blocks=BLOCKS,
    ),
    "announce": Announce(
        url="https://127.0.0.1:7500", hostname="one", version="0.1.0", device=_DEVICE, epoch=0, spans=(), files=()
    ),
    "spans": SpanReport(epoch=3, spans=(_READY, _LOADING)),
    "files": FilesHeld(files=(FileHash(HASH),)),
    "heartbeat-full": Heartbeat(
        n_sessions=1,
        n_queued=2,
        free_kv_bytes=2**30,
        decode_s_per_block=0.001,
        prefill_s_per_token_block=0.0001,
        round_trips_s={OTHER: 0.002},
    ),
    "heartbeat": Heartbeat(
        n_sessions=0, n_queued=0, free_kv_bytes=0, decode_s_per_block=0.0, prefill_s_per_token_block=0.0
    ),
    "generation": GenerationReport(session_id=SESSION, n_prompt_tokens=64, n_completion_tokens=4, outcome="length"),
    "leaving": Leaving(reason="the worker was stopped"),
}
"""On the control socket."""

TO_WORKER: dict[str, Any] = {
    "assign": Assign(epoch=4, spans=(_WANTED,), reason="nobody holds these blocks"),
    "drain": Drain(reason="an operator asked"),
    "dismiss-full": Dismiss(error=_ERROR),
    "dismiss": Dismiss(error=_BARE_ERROR),
}
"""On the control socket."""

_TICKET = {
    "expires_at_s": 4e9,
    "worker_id": ONE,
    "session_id": SESSION,
    "model": "m",
    "revision": HASH,
    "blocks": BLOCKS,
    "epoch": 3,
    "head": ONE,
    "head_url": "https://127.0.0.1:7500",
    "tail": OTHER,
    "max_positions": 128,
}
CLAIMS: dict[str, Any] = {
    "session-token": SessionToken(expires_at_s=4e9, worker_id=ONE),
    "route-ticket-full": Ticket(**_TICKET, previous=OTHER, next=OTHER, next_url="https://127.0.0.1:7501"),
    "route-ticket": Ticket(**_TICKET, previous=None, next=None, next_url=None),
    "attach-ticket": AttachTicket(expires_at_s=4e9, worker_id=OTHER, session_id=SESSION, max_positions=128),
}
"""As tokens that `KEY` signs."""

_MODEL = ModelInfo(
    name="m",
    revision=HASH,
    state="incomplete",
    reason="blocks 5:10 are held by nobody",
    architecture="LlamaForCausalLM",
    n_blocks=10,
    context_length=2048,
    size_bytes=2**28,
    is_chat=True,
    coverage=(BlockCoverage(blocks=BLOCKS, n_workers=2),),
)
_WORKER = {
    "worker_id": ONE,
    "hostname": "one",
    "url": "https://127.0.0.1:7500",
    "state": "loading",
    "reason": "reading weights",
    "device": "cpu",
    "precision": "bfloat16",
    "memory_bytes": 2**33,
    "spans": (_LOADING,),
    "n_sessions": 1,
    "free_kv_bytes": 2**30,
    "decode_s_per_block": 0.001,
    "last_seen_s_ago": 0.5,
}
_HOP = RouteHop(worker_id=ONE, url="https://127.0.0.1:7500", blocks=BLOCKS, precision="bfloat16", ticket="a.b")

BODIES: dict[str, Any] = {
    "error-full": ErrorAnswer(error=_ERROR),
    "error": ErrorAnswer(error=_BARE_ERROR),
    "hello": Hello(protocol_version="1.0", coordinator_id="c-1", time_s=1.8e9),
    "challenge-request": ChallengeRequest(protocol_version="1.0", worker_id=ONE, client_nonce=HASH),
    "challenge": Challenge(protocol_version="1.0", coordinator_id="c-1", server_nonce=HASH, expires_in_s=30.0),
    "join-request": JoinRequest(
        worker_id=ONE, client_nonce=HASH, server_nonce=HASH, certificate_request_pem="pem", time_s=1.8e9
    ),
    "join-grant": JoinGrant(
        certificate_pem="pem",
        ca_pem="pem",
        session_token="a.b",
        session_token_expires_in_s=86_400.0,
        ticket_key=HASH,
        coordinator_id="c-1",
    ),
    "sources-request": SourcesRequest(files=(FileHash(HASH),)),
    "sources-answer": SourcesAnswer(
        sources={FileHash(HASH): (Source(worker_id=ONE, url="https://127.0.0.1:7500"),)}
    ),
    "model-info": _MODEL,
    "model-list": ModelList(models=(_MODEL,)),
    "route-request-full": RouteRequest(model="m", n_prompt_tokens=64, max_tokens=4, exclude=(OTHER,)),
    "route-request": RouteRequest(model="m", n_prompt_tokens=64, max_tokens=4),
    "route-grant": RouteGrant(
        session_id=SESSION, model="m", revision=HASH, hops=(_HOP,), attach_ticket="a.b", expires_in_s=3600.0
    ),
    "cluster-status": ClusterStatus(
        coordinator_id="c-1",
        version="0.1.0",
        url="https://127.0.0.1:7400",
        database="sqlite",
        models=(_MODEL,),
        workers=(WorkerInfo(**_WORKER), WorkerInfo(**_WORKER, pinned_blocks=BLOCKS)),
    ),
    "worker-info": WorkerInfo(**_WORKER, pinned_blocks=BLOCKS),
    "add-model-request": AddModelRequest(name="m", revision=HASH),
    "create-key-request-full": CreateKeyRequest(name="ci", kind="admin"),
    "create-key-request": CreateKeyRequest(name="ci"),
    "created-key": CreatedKey(key_id="k-1", key="not a key"),
    "key-list": KeyList(
        keys=(
            KeyInfo(key_id="k-1", name="ci", kind="client", created_at="2026-11-01T00:00:00Z"),
            KeyInfo(
                key_id="k-2",
                name="op",
                kind="admin",
                created_at="2026-11-01T00:00:00Z",
                revoked_at="2026-11-02T00:00:00Z",
            ),
        )
    ),
}
"""Of requests and answers over HTTP."""

SAMPLES = Samples(frames=FRAMES, to_coordinator=TO_COORDINATOR, to_worker=TO_WORKER, claims=CLAIMS, bodies=BODIES)
"""All that 1.0 has."""

if __name__ == "__main__":
    SAMPLES.write(Path(sys.argv[1]))
