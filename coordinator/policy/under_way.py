"""A move of blocks that is under way: kept in the database too, so that a coordinator that is restarted goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """What a plan rests on of a model."""

    revision: Revision
    n_replicas: int
    pinned_ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveBasis:
    """The cluster that a move was planned for: in another one, something else may be better."""

    placement: str
    auto_quantize: bool
    models: Mapping[ModelName, PlannedModel]
    workers: tuple[WorkerId, ...]
    """Those that could be given blocks."""
    held: Mapping[WorkerId, tuple[SpanAssignment, ...]]
    """Of those who held any."""
    held_as: Mapping[WorkerId, WeightFormat]
    """In what workers hold weights, where nothing else is said of a span."""
    pins: Mapping[WorkerId, tuple[ModelName, BlockRange]]
    """By operators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving:
    """That what is served is being placed anew, a few workers at a time."""

    target: Mapping[WorkerId, tuple[SpanAssignment, ...]]
    """What those who change are to hold in the end."""
    reason: str
    """What it is for, in words."""
    step_s: float
    """When the last step was begun."""
    basis: MoveBasis | None = None
    """None: it was kept by an older version, which didn't say."""
    is_cut: bool = False
    """Whether the coordinator was restarted since; it goes on once all are back, and nothing is placed before."""
    away_s: float = 0.0
    """Of one that was cut: how long ago its last step was begun when the coordinator came back."""
