"""What operators have a worker hold, whatever the planner would choose: pins, and moves from worker to worker."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.ids import BlockRange, ModelName, WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """This worker holds exactly these blocks of this model, and nothing else, until an operator says otherwise."""

    model: ModelName
    blocks: BlockRange
    by: str
    """The operator's key."""
    reason: str = ""
    """Why, in the operator's words; may be empty."""
    takes_from: WorkerId | None = None
    """The worker that gives up `taken` once this one serves it: a move that isn't over yet."""
    taken: BlockRange | None = None
    """What moves, of `blocks`; None where nothing does."""
    is_forced: bool = False
    """Whether it moves also if that interrupts what is served."""


def pin_words(pin: Pin) -> str:
    """The pin in words, for whoever looks at the worker that holds it."""
    why = f": {pin.reason}" if pin.reason else ""
    move = f"; {pin.taken} come from {pin.takes_from}, which serves them until they are ready here"
    return (
        f"pinned to blocks {pin.blocks} of {pin.model} by an operator ({pin.by}){why}"
        f"{move if pin.takes_from is not None else ''}"
    )
