"""The kinds of evidence on a worker, what each weighs, and how soon it is forgotten (docs/decisions/0014)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S

EvidenceKind = Literal[
    "work",
    "hop_failed",
    "wrong_data",
    "overloaded",
    "stalled",
    "deadline",
    "bad_bytes",
    "audit_passed",
    "audit_failed",
    "audit_differed",
]
"""work: a generation ended as it should over the worker. hop_failed: a step failed there, or it went away in the
middle of one. wrong_data: it sent what is no message. stalled, deadline: a route that it was on stood still, or was
too slow. bad_bytes: it served a file that isn't what its hash says. audit_differed: it and another differ, and
nobody could say which is wrong: no proof, so an opinion like others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighing:
    """How a kind of evidence counts."""

    weight: float
    """Of one piece, seen by one reporter."""
    half_life_s: float
    is_good: bool = False


WEIGHINGS: Mapping[EvidenceKind, Weighing] = {
    "work": Weighing(weight=0.5, half_life_s=30 * DAY_S, is_good=True),
    "hop_failed": Weighing(weight=1.0, half_life_s=6 * HOUR_S),
    "wrong_data": Weighing(weight=1.0, half_life_s=DAY_S),
    "overloaded": Weighing(weight=0.25, half_life_s=HOUR_S),
    "stalled": Weighing(weight=1.0, half_life_s=6 * HOUR_S),
    "deadline": Weighing(weight=0.25, half_life_s=6 * HOUR_S),
    "bad_bytes": Weighing(weight=1.0, half_life_s=7 * DAY_S),
    "audit_passed": Weighing(weight=1.0, half_life_s=30 * DAY_S, is_good=True),
    "audit_failed": Weighing(weight=3.0, half_life_s=7 * DAY_S),
    "audit_differed": Weighing(weight=1.05, half_life_s=7 * DAY_S),
}
"""A machine that was switched off is forgiven by the next day; wrong bytes, which no accident makes, in weeks."""
