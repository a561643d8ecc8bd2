"""What the churn benchmark breaks next: drawn from a seed, and never so that a block has nobody for long. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

FaultKind = Literal[
    "kill", "kill_both", "ban", "pause", "cut", "half_open", "delay", "kill_coordinator", "restart_coordinator"
]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
_WEIGHTS: Mapping[FaultKind, float] = {
    "kill": 4,
    "kill_both": 1,
    "ban": 1,
    "pause": 3,
    "cut": 3,
    "half_open": 2,
    "delay": 2,
    "kill_coordinator": 1,
    "restart_coordinator": 1,
}
_LASTS_S: Mapping[FaultKind, tuple[float, float]] = {
    "kill": (0.5, 5.0),
    "kill_both": (0.0, 1.0),
    "ban": (0.5, 5.0),
    "pause": (1.0, 15.0),
    "cut": (0.0, 0.0),
    "half_open": (2.0, 15.0),
    "delay": (2.0, 6.0),
    "kill_coordinator": (0.5, 6.0),
    "restart_coordinator": (0.0, 2.0),
}
"""From the fault to its mending; a process has to start after that."""
_PAUSE_BETWEEN_S = (1.0, 5.0)
COORDINATOR = "coordinator"
OF_WORKERS: frozenset[FaultKind] = frozenset(KINDS) - {"kill_coordinator", "restart_coordinator"}
"""What happens to workers alone: a busy machine may start a coordinator later than clients wait for one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that goes wrong."""

    kind: FaultKind
    names: tuple[str, ...]
    """The processes that it happens to."""
    lasts_s: float


def pause_s(rng: random.Random) -> float:
    """How long to wait before the next fault."""
    return rng.uniform(*_PAUSE_BETWEEN_S)


def next_fault(
    rng: random.Random,
    holders: Mapping[str, tuple[str, ...]],
    well: frozenset[str],
    busy: frozenset[str],
    among: Collection[FaultKind] = KINDS,
) -> Fault | None:
    """What to break, of those that are well, rather one that is busy; None if nothing may be broken now.

    `holders` are the workers of each range, by its name. A worker is broken only while the other holders of its
    range are well; all of them only if they are started again at once. `among`: what may happen at all.
    """
    kinds = [kind for kind in KINDS if kind in among]
    while kinds:
        kind = rng.choices(kinds, [_WEIGHTS[kind] for kind in kinds])[0]
        victims = _possible_victims(kind, holders, well)
        if victims:
            names = rng.choice([names for names in victims if not busy.isdisjoint(names)] or victims)
            return Fault(kind=kind, names=names, lasts_s=rng.uniform(*_LASTS_S[kind]))
        kinds.remove(kind)
    return None


def _possible_victims(
    kind: FaultKind, holders: Mapping[str, tuple[str, ...]], well: frozenset[str]
) -> list[tuple[str, ...]]:
    whole_ranges = [names for names in holders.values() if well.issuperset(names)]
    match kind:
        case "kill_coordinator" | "restart_coordinator":
            return [(COORDINATOR,)] if COORDINATOR in well else []
        case "kill_both":
            # one range at a time, with a coordinator that tells where its blocks are again
            is_all_well = well.issuperset(name for names in holders.values() for name in names)
            return whole_ranges if is_all_well and COORDINATOR in well else []
        case "ban" if COORDINATOR not in well:
            return []
        case "kill" | "ban" | "pause" | "cut" | "half_open" | "delay":
            return [(name,) for names in whole_ranges for name in names]
