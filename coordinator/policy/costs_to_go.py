"""What it costs from each boundary to the end and back to the first worker, over few segments by their true links.

By dynamic programming from the last block backwards, for all first workers at once. A way may come to a worker
twice, but not to the first one: so it is never more than the truth, and mostly the truth itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.policy.links import LINK_S
from coordinator.policy.segments import Segment, back_s

_Floats = NDArray[np.float64]


class CostsToGo:
    """For each boundary and segment that ends or goes on there, by the segment that the way began with."""

    def __init__(
        self, segments: Sequence[Segment], n_blocks: int, cuts: Sequence[int], *, only_once: bool = True
    ) -> None:
        """`cuts`: where a way may change workers, ascending. `only_once`: whether none may come twice."""
        self._segments, self._n_blocks, self._cuts = segments, n_blocks, cuts
        self._firsts = {i: row for row, i in enumerate(k for k, s in enumerate(segments) if s.can_be_entered(0))}
        ids = [segment.worker_id for segment in segments]
        places: dict[str, int] = {}
        numbers = np.array([places.setdefault(worker_id, len(places)) for worker_id in ids])
        self._link_s = np.array([[one.link_s.get(worker_id, LINK_S) for worker_id in ids] for one in segments])
        # (from, to); who may come twice can't go on to the same segment even so
        is_same = numbers[:, np.newaxis] == numbers if only_once else np.eye(len(ids), dtype=bool)
        self._link_s[is_same] = np.inf
        self._entry_s = np.zeros((len(self._firsts), len(ids)))  # (first, segment)
        self._entry_s += [segment.entry_s for segment in segments]
        if only_once:
            self._entry_s[is_same[list(self._firsts)]] = np.inf
        self._block_s = np.array([segment.seconds_per_block for segment in segments])
        self._ranges = np.array(
            [(one.blocks.start, one.latest_entry, one.earliest_exit, one.blocks.end) for one in segments]
        ).T
        self._enterable: dict[int, list[int]] = {}
        self._to_go: dict[int, _Floats] = {}
        self._rows: dict[tuple[int, int], list[float]] = {}
        self._longer_back: dict[tuple[int, int], float] = {}
        self._settle()

    def after(self, cut: int) -> int:
        """The next boundary."""
        return self._cuts[bisect_right(self._cuts, cut)]

    def enterable(self, cut: int) -> list[int]:
        """The segments that a way may come to at a boundary before the end."""
        return self._enterable[cut]

    def round_s(self, cut: int, first: int) -> list[float]:
        """By segment that has run up to `cut`: to the end, and back to segment `first`; endless if it can't be."""
        if (cut, first) not in self._rows:
            self._rows[cut, first] = self._to_go[cut][self._firsts[first]].tolist()
        return self._rows[cut, first]

    def longer_back_s(self, first: int, other: int) -> float:
        """By how much at most the way back to segment `first` is longer than that to `other`, whoever is last."""
        if first == other:
            return 0.0
        if (first, other) not in self._longer_back:
            a, b = self._segments[first], self._segments[other]
            self._longer_back[first, other] = max(
                back_s(tail, a) - back_s(tail, b)
                for tail in self._segments
                if tail.blocks.end == self._n_blocks and tail.worker_id != b.worker_id
            )
        return self._longer_back[first, other]

    def _settle(self) -> None:
        starts, latest, earliest, ends = self._ranges
        self._to_go[self._n_blocks] = to_go_s = self._at_end()
        for cut, after in reversed(list(zip(self._cuts, self._cuts[1:], strict=False))):
            runs = np.flatnonzero((starts <= cut) & (cut < ends))
            staying_s = np.full_like(to_go_s, np.inf)
            staying_s[:, runs] = to_go_s[:, runs] + (after - cut) * self._block_s[runs]
            entered = np.flatnonzero((starts <= cut) & (cut <= latest))
            self._enterable[cut] = entered.tolist()
            left = np.flatnonzero((earliest <= cut) & (cut <= ends))
            to_go_s = staying_s.copy()
            to_go_s[:, starts == cut] = np.inf  # it hasn't run a block yet
            if len(left):
                entered_s = staying_s[:, entered] + self._entry_s[:, entered]
                # (first, from, to)
                ways_s = entered_s[:, np.newaxis, :] + self._link_s[np.ix_(left, entered)]
                to_go_s[:, left] = np.minimum(to_go_s[:, left], ways_s.min(axis=2, initial=np.inf))
            self._to_go[cut] = to_go_s

    def _at_end(self) -> _Floats:
        to_go_s = np.full((len(self._firsts), len(self._segments)), np.inf)
        for i, segment in enumerate(self._segments):
            if segment.blocks.end == self._n_blocks:
                to_go_s[:, i] = [segment.after_s + back_s(segment, self._segments[k]) for k in self._firsts]
        return to_go_s
