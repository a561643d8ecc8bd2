"""How likely audits quarantine honest workers, reckoned from how far these differ.

An alarm is a probe at which two honest workers differ by more than is allowed. A worker fails by an alarm that
`N_AGAIN` of `MAX_CONFIRMATIONS` fresh probes show again, or `N_AGAIN` of its `N_LATER` last audits showed; so if p
is the chance of an alarm, that of a false quarantine is at most p times the chance of so many more (about 148 p^3),
referees taken to be of the wrong mind each time. p is reckoned for each range of blocks of each model by itself,
and the worst one counts: where alarms are likely at all they come again.

Two bounds of p, each of 95 %; the smaller one counts: by counting (Clopper and Pearson 1934), and by a power law
of the largest values (Hill's estimate of its exponent, less 1.645 of its standard errors). What is measured can't
pass 2, so its tail is thinner than any power law's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.audit_alarms import PAIRS, Alarms, Cell, Floats
from coordinator.policy.audit_accusations import N_LATER
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN

GOAL = 1e-5
"""Most false quarantines an audit."""
UNSURE = 0.05
"""How likely a bound doesn't hold."""
ONE_SIDED = 1.645
"""Standard errors that a normal variable exceeds in 5 %."""
TAIL, LEAST = 0.01, 30
"""The share of a cell's audits, the largest, that the power law goes by; but at least so many."""
CHECKED = 1e-3
"""How likely what is asked of the other half of the audits, to see whether the reckoning holds."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The largest of many positive values, taken for a power law."""

    n_values: int
    n_largest: int
    start: float
    """What those are beyond."""
    exponent: float
    """Of the chance to pass a level: one over the mean logarithm of those values over `start`."""

    @property
    def share(self) -> float:
        """Of all values, those beyond `start`."""
        return self.n_largest / self.n_values

    @property
    def least_exponent(self) -> float:
        """What it is at least, with 95 % certainty."""
        return self.exponent * max(0.0, 1.0 - ONE_SIDED / math.sqrt(self.n_largest))

    def chance(self, level: float, *, at_most: bool = False) -> float:
        """How likely a value beyond `level`; with 95 % certainty `at_most`. 1 where the law says nothing."""
        if level <= self.start:
            return 1.0
        exponent = self.least_exponent if at_most else self.exponent
        return float(self.share * (level / self.start) ** -exponent)

    def level(self, chance: float) -> float:
        """What values pass with this chance, which is less than `share`."""
        return self.start * (self.share / chance) ** (1.0 / self.exponent)


def tail_of(values: Floats) -> Tail:
    """By the largest of the values."""
    ordered = np.sort(values)[::-1].astype(float)
    n_largest = min(max(LEAST, int(len(ordered) * TAIL)), len(ordered) - 1)
    start = max(ordered[n_largest], 1e-9)
    slope = float(np.mean(np.log(np.maximum(ordered[:n_largest], start) / start)))
    return Tail(len(ordered), n_largest, start, 1.0 / max(slope, 1e-3))


@dataclass(frozen=True, slots=True)
class Chance:
    """Of an alarm in one cell, and of a false quarantine."""

    cell: Cell
    n_audits: int
    n_alarms: int
    most: float
    """The largest ratio of what was seen to what is allowed."""
    alarm: float
    """By the power law."""
    by_power_law: float
    """What that is at most."""
    by_counting: float

    @property
    def alarm_at_most(self) -> float:
        """The smaller of two bounds of 95 % each: both hold with 90 % at least."""
        return min(self.by_power_law, self.by_counting)

    @property
    def quarantine_at_most(self) -> float:
        """Likewise, that it comes again when it is to be confirmed, or has come in the audits before."""
        p = self.alarm_at_most
        return p * (confirmed(p) + at_least(N_AGAIN, N_LATER, p))


def chance_of(cell: Cell, values: Floats) -> Chance:
    """By the ratios of a cell's audits."""
    tail, n_alarms = tail_of(values), int((values > 1.0).sum())
    return Chance(
        cell=cell,
        n_audits=len(values),
        n_alarms=n_alarms,
        most=float(values.max()),
        alarm=min(tail.chance(1.0), max(n_alarms, 1) / len(values)),
        by_power_law=tail.chance(1.0, at_most=True),
        by_counting=counted_at_most(n_alarms, len(values)),
    )


def confirmed(share: float) -> float:
    """How likely fresh probes show again what this share of probes shows."""
    return at_least(N_AGAIN, MAX_CONFIRMATIONS, share)


def at_least(n_hits: int, n_trials: int, share: float) -> float:
    """How likely so many of independent trials are hits, of which each is one with this chance."""
    return math.fsum(
        math.comb(n_trials, n) * share**n * (1.0 - share) ** (n_trials - n) for n in range(n_hits, n_trials + 1)
    )


def counted_at_most(n_seen: int, n_audits: int) -> float:
    """The 95 % bound of a share of which so many were seen: larger ones would hardly show so few."""
    low, high = n_seen / n_audits, 1.0
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        few = math.fsum(math.exp(_log_chance(n, n_audits, middle)) for n in range(n_seen + 1))
        low, high = (middle, high) if few > UNSURE else (low, middle)
    return high


def _log_chance(n_hits: int, n_trials: int, share: float) -> float:
    ways = math.lgamma(n_trials + 1) - math.lgamma(n_hits + 1) - math.lgamma(n_trials - n_hits + 1)
    return ways + n_hits * math.log(share) + (n_trials - n_hits) * math.log1p(-share)


def chances(alarms: Alarms) -> list[Chance]:
    """Of all cells."""
    return [chance_of(cell, values) for cell, values in alarms.ratios.items()]


def worst_of(found: list[Chance]) -> Chance:
    """The one that counts."""
    return max(found, key=lambda one: one.quarantine_at_most)


def is_reached(alarms: Alarms) -> bool:
    """Whether false quarantines are as rare as they have to be, in every cell."""
    return worst_of(chances(alarms)).quarantine_at_most < GOAL


def table(alarms: Alarms) -> Table:
    """Of every pair: how near to an alarm honest workers come, and what comes of it in the worst cell."""
    found = Table(
        "experts", "one", "other", "audits", "alarms", "most", "alarm, mean", "worst cell", "alarm, at most",
        "counted", "quarantine, at most",
    )  # fmt: skip
    for is_plain, pair, cells in _by_pair(alarms):
        worst, (one, other) = worst_of(cells), PAIRS[pair]
        found.add_row(
            "no" if is_plain else "yes", one.weights,
            other.weights if one.weights != other.weights else f"in {other.dtype}".replace("torch.", ""),
            f"{sum(each.n_audits for each in cells):,}", str(sum(each.n_alarms for each in cells)),
            f"{max(each.most for each in cells):.2f}", f"{np.mean([each.alarm for each in cells]):.0e}",
            str(worst.cell), f"{worst.by_power_law:.0e}", f"{worst.by_counting:.0e}",
            f"{worst.quarantine_at_most:.0e}",
        )  # fmt: skip
    return found


def _by_pair(alarms: Alarms) -> Iterator[tuple[bool, int, list[Chance]]]:
    every = chances(alarms)
    for pair in range(len(PAIRS)):
        for is_plain in (True, False):
            cells = [
                one
                for one in every
                if one.cell.pair == pair and (one.cell.architecture in alarms.dense) == is_plain
            ]
            if cells:
                yield is_plain, pair, cells


def words(alarms: Alarms) -> str:
    """What all say together, and whether the reckoning of rare alarms holds where it can be seen."""
    every = chances(alarms)
    worst, n_alarms = worst_of(every), sum(one.n_alarms for one in every)
    one, other = PAIRS[worst.cell.pair]
    expected = seen = 0.0
    for values in alarms.ratios.values():
        rest = values[1::2]
        expected += CHECKED * len(rest)
        seen += float((rest > tail_of(values[::2]).level(CHECKED)).sum())
    return (
        f"{n_alarms} alarms in {sum(one.n_audits for one in every):,} audits of honest pairs, of "
        f"{alarms.n_inputs:,} inputs.\n"
        f"Chance of a false quarantine an audit, in the worst of {len(every):,} cells ({worst.cell}, {one.weights} "
        f"with {other.weights} in {other.dtype}): at most {worst.quarantine_at_most:.1e}; the goal is {GOAL:.0e}: "
        f"{'reached' if worst.quarantine_at_most < GOAL else 'NOT reached'}.\n"
        f"Of the half that the reckoning wasn't made from, {seen:,.0f} pass what one in {1 / CHECKED:,.0f} should; "
        f"{expected:,.0f} were expected."
    )
