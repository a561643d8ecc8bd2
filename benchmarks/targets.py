"""What must be reached, and what was: ratios, a bound, and whether it holds. Doesn't know how it is measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One line of the table: a ratio that must be reached."""

    name: str
    """For `--only`."""
    what: str
    bound: float
    is_least: bool = True
    """Whether the bound is the least that is good enough; else it is the most."""

    def is_reached(self, value: float) -> bool:
        """Whether this value is good enough."""
        return value >= self.bound if self.is_least else value <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one target."""

    target: Target
    ratios: tuple[float, ...] = ()
    """One a repeat: each of two figures taken one after the other."""
    details: dict[str, float] = field(default_factory=dict)
    """Figures that are good for this machine only: medians, by name with unit."""
    failure: str = ""
    """Why there are no ratios."""

    @property
    def value(self) -> float | None:
        """The median of the ratios; None if it couldn't be measured."""
        return statistics.median(self.ratios) if self.ratios else None

    @property
    def is_reached(self) -> bool:
        """Whether the target is; not if it couldn't be measured."""
        return self.value is not None and self.target.is_reached(self.value)


def outcomes_table(outcomes: Sequence[Outcome], title: str) -> Table:
    """The outcomes for people."""
    table = Table(title=title)
    table.add_column("what", overflow="fold")
    for column in ("measured", "must be", "of", ""):
        table.add_column(column, justify="right")
    table.add_column("in figures of this machine", overflow="fold")
    for outcome in outcomes:
        target, value = outcome.target, outcome.value
        least, most = (min(outcome.ratios), max(outcome.ratios)) if outcome.ratios else (0.0, 0.0)
        details = ", ".join(f"{name} {figure:.4g}" for name, figure in outcome.details.items())
        table.add_row(
            f"{target.what} ({target.name})",
            "-" if value is None else f"{value:.3f}",
            f"{'>=' if target.is_least else '<='} {target.bound:g}",
            "-" if value is None else f"{least:.3f} to {most:.3f}",
            "yes" if outcome.is_reached else "NO",
            outcome.failure or details,
        )
    return table


def outcomes_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """The outcomes for programs."""
    return [asdict(outcome) | {"value": outcome.value, "is_reached": outcome.is_reached} for outcome in outcomes]
