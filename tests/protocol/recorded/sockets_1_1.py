"""Messages as protocol 1.1 had them, without their checks of values. See README.md; not to be edited."""

from __future__ import annotations

from typing import Literal

import msgspec

CoordinatorId = str

WorkerId = str

SessionId = str

ModelName = str

Revision = str

FileHash = str

KeyId = str


class BlockRange(msgspec.Struct, frozen=True, order=True):
    start: int
    end: int


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    code: str
    message: str
    retry_after_s: float | None = None


FinishReason = Literal["stop", "length", "cancelled"]

Precision = Literal["float32", "bfloat16", "float16"]

SpanState = Literal["downloading", "loading", "ready", "failed"]

WorkerState = Literal[
    "enrolling", "idle", "downloading", "loading", "ready", "draining", "suspect", "lost", "gone", "quarantined"
]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int


class OpenSession(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    session_id: SessionId
    tickets: tuple[str, ...]
    deadline_s: float


class AttachTail(msgspec.Struct, frozen=True, kw_only=True, tag="attach"):
    session_id: SessionId
    ticket: str
    sampling: SamplingParams


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    session_id: SessionId
    position: int
    n_tokens: int
    dtype: Literal["int32", "float32", "bfloat16", "float16"]
    is_last: bool


class FeedToken(msgspec.Struct, frozen=True, kw_only=True, tag="feed"):
    session_id: SessionId
    position: int
    token_id: int


class CloseSession(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="close"):
    session_id: SessionId
    reason: Literal["finished", "cancelled", "failed", "deadline", "lost"]
    worker_id: WorkerId | None = None


class SessionOpened(msgspec.Struct, frozen=True, kw_only=True, tag="opened"):
    session_id: SessionId


class Credit(msgspec.Struct, frozen=True, kw_only=True, tag="credit"):
    session_id: SessionId
    n_steps: int


class SessionEnded(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    session_id: SessionId
    worker_id: WorkerId
    error: ErrorBody


class Token(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    session_id: SessionId
    index: int
    token_id: int
    finish_reason: FinishReason | None = None


class SpanStatus(msgspec.Struct, frozen=True, kw_only=True):
    model: ModelName
    revision: Revision
    blocks: BlockRange
    state: SpanState
    reason: str
    progress: float = 0.0


class DeviceReport(msgspec.Struct, frozen=True, kw_only=True):
    device: str
    precision: Precision
    n_threads: int
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float


class Announce(msgspec.Struct, frozen=True, kw_only=True, tag="announce"):
    url: str
    hostname: str
    version: str
    device: DeviceReport
    epoch: int
    spans: tuple[SpanStatus, ...]
    files: tuple[FileHash, ...]
    pinned_model: ModelName | None = None
    pinned_blocks: BlockRange | None = None


class SpanReport(msgspec.Struct, frozen=True, kw_only=True, tag="spans"):
    epoch: int
    spans: tuple[SpanStatus, ...]


class FilesHeld(msgspec.Struct, frozen=True, kw_only=True, tag="files"):
    files: tuple[FileHash, ...]


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, tag="heartbeat"):
    n_sessions: int
    n_queued: int
    free_kv_bytes: int
    decode_s_per_block: float
    prefill_s_per_token_block: float
    round_trips_s: dict[WorkerId, float] = {}


class GenerationReport(msgspec.Struct, frozen=True, kw_only=True, tag="generation"):
    session_id: SessionId
    n_prompt_tokens: int
    n_completion_tokens: int
    outcome: Literal["stop", "length", "cancelled", "failed", "deadline"]


class Leaving(msgspec.Struct, frozen=True, kw_only=True, tag="leaving"):
    reason: str


class SpanAssignment(msgspec.Struct, frozen=True, kw_only=True):
    model: ModelName
    revision: Revision
    blocks: BlockRange


class Assign(msgspec.Struct, frozen=True, kw_only=True, tag="assign"):
    epoch: int
    spans: tuple[SpanAssignment, ...]
    reason: str


class Drain(msgspec.Struct, frozen=True, kw_only=True, tag="drain"):
    reason: str


class Dismiss(msgspec.Struct, frozen=True, kw_only=True, tag="dismiss"):
    error: ErrorBody


ToWorker = OpenSession | AttachTail | Step | FeedToken | CloseSession

Backward = SessionOpened | Credit | SessionEnded | Token

DataMessage = ToWorker | Backward

WorkerToCoordinator = Announce | SpanReport | FilesHeld | Heartbeat | GenerationReport | Leaving

CoordinatorToWorker = Assign | Drain | Dismiss
