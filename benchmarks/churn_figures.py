"""What the churn benchmark has seen, as numbers, a table and JSON. Knows no processes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """How long streams stood still when one kind of thing happened, in seconds."""

    n_faults: int
    n_streams: int
    """Streams that it may have stopped."""
    p50_s: float
    p95_s: float
    max_s: float


@dataclass(slots=True, kw_only=True)
class Figures:
    """The outcome of a run."""

    seed: int
    seconds: float
    n_streams: int
    n_generations: int = 0
    n_tokens: int = 0
    n_wrong_tokens: int = 0
    n_lost_generations: int = 0
    n_failovers: int = 0
    lost: list[str] = field(default_factory=list)
    """Why each lost generation was lost."""
    wrong: list[str] = field(default_factory=list)
    """Which generations were wrong, and from which token on."""
    stalls: dict[str, Stalls] = field(default_factory=dict)
    """By kind of fault."""
    after_kill_with_replica: Stalls | None = None
    """The next token after `kill -9` of a worker whose replica is loaded."""
    after_kill_with_spare: Stalls | None = None
    """The next token after `kill -9` of all holders of a range that a spare has to load from its cache."""

    @property
    def is_clean(self) -> bool:
        """Whether no token was wrong and no generation was lost."""
        return self.n_wrong_tokens == 0 and self.n_lost_generations == 0


@dataclass(slots=True)
class StallRecord:
    """Collects stalls by kind of fault."""

    n_faults: Counter[str] = field(default_factory=Counter)
    waits_s: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, waits_s: Sequence[float]) -> None:
        """A fault, and the longest wait of each stream that it met."""
        self.n_faults[kind] += 1
        self.waits_s.setdefault(kind, []).extend(waits_s)

    def summary(self) -> dict[str, Stalls]:
        """By kind, sorted by name."""
        return {kind: stalls_of(self.waits_s[kind], n) for kind, n in sorted(self.n_faults.items())}


def stalls_of(waits_s: Sequence[float], n_faults: int) -> Stalls:
    """What one kind of fault did."""
    return Stalls(
        n_faults=n_faults,
        n_streams=len(waits_s),
        p50_s=quantile(waits_s, 0.5),
        p95_s=quantile(waits_s, 0.95),
        max_s=max(waits_s, default=0.0),
    )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all don't exceed; 0 of none."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)] if values else 0.0


def n_wrong(found: Sequence[int], expected: Sequence[int]) -> int:
    """Tokens that aren't what they should be, missing and superfluous ones too."""
    n_different = sum(one != other for one, other in zip(found, expected, strict=False))
    return n_different + abs(len(found) - len(expected))


def as_json(figures: Figures) -> dict[str, Any]:
    """Everything, for programs."""
    return asdict(figures) | {"is_clean": figures.is_clean}


def as_table(figures: Figures) -> Table:
    """The same for people."""
    shown = Table(
        title=f"{figures.seconds:.0f} s of churn, {figures.n_streams} streams, seed {figures.seed}: "
        f"{figures.n_generations} generations, {figures.n_tokens} tokens, {figures.n_wrong_tokens} wrong, "
        f"{figures.n_lost_generations} lost, {figures.n_failovers} failovers"
    )
    shown.add_column("what happened")
    for column in ("times", "streams", "stall p50 s", "p95 s", "max s"):
        shown.add_column(column, justify="right")
    rows = dict(figures.stalls)
    if figures.after_kill_with_replica is not None:
        rows["next token after kill -9, replica loaded"] = figures.after_kill_with_replica
    if figures.after_kill_with_spare is not None:
        rows["next token after kill -9, spare loads from its cache"] = figures.after_kill_with_spare
    for what, stalls in rows.items():
        numbers = (stalls.p50_s, stalls.p95_s, stalls.max_s)
        shown.add_row(what, str(stalls.n_faults), str(stalls.n_streams), *(f"{number:.2f}" for number in numbers))
    return shown
