"""A move of blocks that is under way: kept in the database too, so that a coordinator that is restarted goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.control_messages import SpanAssignment
from protocol.ids import WorkerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """That what is served is being placed anew, a few workers at a time."""

    target: Mapping[WorkerId, tuple[SpanAssignment, ...]]
    """What those who change are to hold in the end."""
    reason: str
    """What it is for, in words."""
    step_s: float
    """When the last step was begun."""
    is_cut: bool = False
    """Whether the coordinator was restarted since; it goes on once all are back, and nothing is placed before."""
