"""How a session ends: why, who said so, and who has to be told. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    DeadlineExceededError,
    ErrorBody,
    HopLostError,
    KeyRevokedError,
    ModelFaultError,
    OverloadedError,
)
from protocol.ids import WorkerId
from protocol.messages import CloseSession, SessionEnded
from protocol.tls import is_worker_id

MAX_RELAYED_CHARS = 2000
"""Of a neighbour's message, when it is passed on: with it a frame stays far below its limit."""
_MAX_CODE_CHARS = 64
_TOLD_CODES = (ModelFaultError.code, KeyRevokedError.code)
"""Of errors that another route doesn't mend: the tail may hear of them from the hop before it first."""

CloseReason = Literal["finished", "cancelled", "failed", "deadline", "lost"]
Party = Literal["opener", "next", "ring", "client"]
"""Whom a session deals with: its opener, the next hop, the head (seen from the tail), the tail's client."""
FinishReason = Literal["stop", "length"]
Outcome = Literal[FinishReason, "cancelled", "failed", "deadline"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a session ends here. `source` is None if this worker itself decided it."""

    reason: CloseReason
    source: Party | None
    error: ErrorBody
    """For those who get `SessionEnded`."""
    worker_id: WorkerId
    """Where it went wrong."""
    noticed_by: WorkerId | None = None
    """Who noticed that; None: this worker."""
    finish_reason: FinishReason | None = None
    """Why a private answer is at its end, as its client says."""


class EndingError(Exception):
    """Carries an ending up to where the session ends; never leaves the session."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.error.message)
        self.ending = ending


def ended_by_error(error: BrigadeError, worker_id: WorkerId, source: Party | None = None) -> Ending:
    """The ending after `error`; `worker_id` is the worker to blame."""
    reason: CloseReason = "failed"
    if isinstance(error, DeadlineExceededError):
        reason = "deadline"
    elif isinstance(error, CancelledByClientError):
        reason = "cancelled"
    return Ending(reason=reason, source=source, error=error.body(), worker_id=worker_id)


def ended_by_neighbour(said: SessionEnded, neighbour: WorkerId, source: Party) -> Ending:
    """The ending after a neighbour's `SessionEnded`. It goes on to others, so it is cut to a size that can."""
    error = ErrorBody(
        code=said.error.code[:_MAX_CODE_CHARS],
        message=said.error.message[:MAX_RELAYED_CHARS],
        retry_after_s=said.error.retry_after_s,
    )
    to_blame = said.worker_id if is_worker_id(said.worker_id) else neighbour
    is_told = said.noticed_by is not None and is_worker_id(said.noticed_by)
    noticed_by = said.noticed_by if is_told else neighbour
    return Ending(reason="failed", source=source, error=error, worker_id=to_blame, noticed_by=noticed_by)


def ended_by_close(
    reason: CloseReason,
    worker_id: WorkerId,
    source: Party | None,
    finish_reason: FinishReason | None = None,
    error_code: str = "",
) -> Ending:
    """The ending after somebody closed the session; `worker_id` is the worker to blame, if it failed.

    `error_code`: as it came from a neighbour; of all codes only those of `_TOLD_CODES` count.
    """
    error: BrigadeError
    match reason:
        case "finished" | "cancelled":
            error = CancelledByClientError("the generation was taken back")
        case "deadline":
            error = DeadlineExceededError("the generation took longer than its deadline")
        case "failed" if error_code == ModelFaultError.code:
            error = ModelFaultError(
                f"blocks of the model at worker {worker_id}, an earlier one of the route, gave values that are NaN "
                "or infinite: the model's weights are damaged"
            )
        case "failed" if error_code == KeyRevokedError.code:
            error = KeyRevokedError("the API key was revoked; ask whoever gave it to you for another")
        case "failed" | "lost":
            error = HopLostError("an earlier worker of the route failed or went away: ask for another route")
    body = error.body()
    return Ending(reason=reason, source=source, error=body, worker_id=worker_id, finish_reason=finish_reason)


def blamed(close: CloseSession, sender: WorkerId | None) -> WorkerId | None:
    """The worker to blame by what somebody says who closed the session; if unnamed, `sender` (None: a client)."""
    named = close.worker_id
    return named if named is not None and is_worker_id(named) else sender


def blame_to_tell(ending: Ending, teller: WorkerId) -> WorkerId | None:
    """Whom `CloseSession` has to name: nobody unless somebody failed, nor who says it."""
    is_others = ending.reason in ("failed", "lost") and ending.worker_id != teller
    return ending.worker_id if is_others else None


def error_code_to_tell(ending: Ending) -> str:
    """What `CloseSession` has to say of the error, so that nobody is blamed for what isn't a worker's doing."""
    return ending.error.code if ending.error.code in _TOLD_CODES else ""


def keeps_cache(ending: Ending) -> bool:
    """Whether what was computed here may be of use: to the same generation by another route, or to a later one.

    Not if there was no memory for it here, or the blocks here are broken.
    """
    is_own = ending.source is None
    return not (is_own and ending.error.code in (OverloadedError.code, ModelFaultError.code))


def parties_to_tell(ending: Ending) -> frozenset[Party]:
    """Who has to hear of it: everybody that doesn't know yet.

    By the ring only what the head can't learn better from `SessionEnded`, which comes back hop by hop and says why.
    """
    told: set[Party] = {"next"}
    if ending.reason != "finished":
        told |= {"opener", "client"}
    if ending.reason in ("finished", "cancelled") and ending.source != "opener":
        told.add("ring")
    if ending.reason == "finished" and ending.source == "opener":
        told.add("client")  # the tail hadn't finished: the stream was broken off
    return frozenset(told - {ending.source})


def outcome(ending: Ending, finish_reason: FinishReason | None) -> Outcome:
    """What the tail reports; `finish_reason` if it came to its own end."""
    if finish_reason is not None:
        return finish_reason
    match ending.reason:
        case "finished" | "cancelled":
            return "cancelled"
        case "deadline":
            return "deadline"
        case "failed" | "lost":
            return "failed"
