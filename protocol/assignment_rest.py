"""Bodies of the requests by which operators see and decide who holds which blocks, and of the answers."""

from __future__ import annotations

from protocol.control_messages import SpanAssignment, SpanStatus, WorkerState
from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange, ModelName, WorkerId, block_range_from_text, checked_model_name
from protocol.plan_rest import ModelledSpeed
from protocol.rest import Body

MAX_PIN_REASON = 500
"""Characters of why an operator decided."""


class PinInfo(Body, frozen=True, kw_only=True):
    """What a worker is fixed to."""

    model: ModelName | None
    """None: the first model there is."""
    blocks: BlockRange
    by: str
    """The operator's key; empty: whoever started the worker (`worker join --blocks`)."""
    reason: str = ""
    takes_from: WorkerId | None = None
    """The worker that gives `taken` up once this one serves it: a move that isn't over yet."""
    taken: BlockRange | None = None


class AssignmentInfo(Body, frozen=True, kw_only=True):
    """Who holds what, and why: one worker."""

    worker_id: WorkerId
    hostname: str
    state: WorkerState
    epoch: int
    spans: tuple[SpanStatus, ...]
    """What is assigned, as far as reported, then what is served until that is ready."""
    reason: str
    """Why these blocks; of none: why none, and what would change that."""
    pin: PinInfo | None = None


class AssignmentList(Body, frozen=True, kw_only=True):
    """`GET /admin/v1/assignments`: all workers by id, also those that are forgotten but for their pin."""

    assignments: tuple[AssignmentInfo, ...]
    next_cursor: str | None = None


class PinRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`PUT /admin/v1/workers/{id}/assignment`: this worker is to hold exactly these blocks."""

    model: str
    blocks: str
    """`start:end`, half-open."""
    reason: str = ""
    force: bool = False
    """Also if blocks would be served by nobody, for a while at least."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant. ValueError: msgspec reports it as invalid."""
        check_pin(self.model, self.blocks, self.reason)


class PreviewRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /admin/v1/assignments/preview`: what would happen if a worker were pinned to these blocks."""

    worker: str
    """Its id, or the beginning of it."""
    model: str
    blocks: str
    takes_from: str | None = None
    """If the blocks were moved from this worker."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant. ValueError: msgspec reports it as invalid."""
        check_pin(self.model, self.blocks, "")


class MoveRequest(Body, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """`POST /admin/v1/assignments/move`: one worker takes blocks over from another, make before break."""

    model: str
    blocks: str
    takes_from: str
    """The id of the worker that holds them, or the beginning of it."""
    worker: str
    """The one that is to."""
    reason: str = ""
    force: bool = False
    """Also if other blocks would be served by nobody, for a while at least."""

    def __post_init__(self) -> None:
        """Refuse what can't be meant. ValueError: msgspec reports it as invalid."""
        check_pin(self.model, self.blocks, self.reason)


class SpeedChange(Body, frozen=True, kw_only=True):
    """How fast one model is modelled to be; None where not all blocks are held."""

    model: ModelName
    now: ModelledSpeed | None
    then: ModelledSpeed | None


class HolderChange(Body, frozen=True, kw_only=True):
    """What one worker would hold instead."""

    worker_id: WorkerId
    hostname: str
    now: tuple[SpanAssignment, ...]
    then: tuple[SpanAssignment, ...]


class AssignmentPreview(Body, frozen=True, kw_only=True):
    """What would follow."""

    worker_id: WorkerId
    pin: PinInfo
    needed_bytes: int
    """Of the blocks with a short cache."""
    capacity_bytes: int
    """What the worker has for blocks."""
    models: tuple[SpeedChange, ...]
    changes: tuple[HolderChange, ...]
    refusal: str = ""
    """Why it can't be done at all; empty if it can."""
    loses: str = ""
    """Which blocks would be served by nobody, for a while at least: it takes `force` then; empty if none."""


def check_pin(model: str, blocks: str, reason: str) -> None:
    """ValueError unless these can be a model, a range of blocks, and a reason."""
    try:
        checked_model_name(model)
        block_range_from_text(blocks)
    except InvalidRequestError as error:
        raise ValueError(error.message) from error
    if not reason.isprintable():
        raise ValueError("the reason holds characters that can't be shown; write it in one line")
    if len(reason) > MAX_PIN_REASON:
        raise ValueError(f"the reason has {len(reason)} characters; at most {MAX_PIN_REASON}")
