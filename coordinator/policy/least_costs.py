"""What a way at least costs from and to each boundary, and over each segment, as if workers were as near as can be.

By dynamic programming over the boundaries, for all segments at once: a thousand of them in a millisecond, however
alike they are. The costs hang on blocks alone, so a way may come to a worker twice: they are never more than the
truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from coordinator.policy.segments import DIGITS, Leg, Segment

_Floats = NDArray[np.float64]


class LeastCosts:
    """Of one fleet. Arrays are by segment, the fastest first, so that it is taken of those that cost the same."""

    def __init__(self, segments: Sequence[Segment], entries_s: Sequence[float], n_blocks: int) -> None:
        """`entries_s`: what it costs at least to come to each segment. All together cover the blocks."""
        block_s = np.array([one.seconds_per_block for one in segments])
        self._numbers = order = np.argsort(block_s, kind="stable")
        self._block_s = block_s[order]
        self._entry_s = np.array(entries_s)[order]
        self._after_s = np.array([one.after_s for one in segments])[order]
        starts, ends = (
            np.array(at)[order] for at in zip(*((s.blocks.start, s.blocks.end) for s in segments), strict=True)
        )
        latest = np.array([one.latest_entry for one in segments])[order]
        earliest = np.array([one.earliest_exit for one in segments])[order]
        cuts = np.arange(n_blocks + 1)[:, np.newaxis]
        # both are of cuts by segments
        self._is_entered = (starts <= cuts) & (cuts <= latest)
        self._is_left = (earliest <= cuts) & (cuts <= ends)
        self._segments, self._n_blocks = segments, n_blocks
        self.onwards_s = np.zeros(n_blocks + 1)
        """From each boundary to the end, entering included."""
        self._first = [0] * n_blocks
        self._settle()

    def _settle(self) -> None:
        run_s = np.full(len(self._block_s), np.inf)
        for cut in range(self._n_blocks - 1, -1, -1):
            left_s = np.where(self._is_left[cut + 1], self._left_s(cut + 1), np.inf)
            run_s = np.minimum(run_s, left_s) + self._block_s
            entered_s = np.where(self._is_entered[cut], run_s + self._entry_s, np.inf)
            self._first[cut] = place = int(entered_s.argmin())
            self.onwards_s[cut] = entered_s[place]

    def _left_s(self, cut: int) -> _Floats | float:
        """From where segments are left to the end: at the end itself, what each takes after the last block."""
        return self._after_s if cut == self._n_blocks else float(self.onwards_s[cut])

    def legs(self) -> list[Leg]:
        """The way that costs `onwards_s[0]`; it may come to a worker twice."""
        legs, cut = [], 0
        while cut < self._n_blocks:
            i = int(self._numbers[self._first[cut]])
            one = self._segments[i]
            ends = np.arange(max(cut + 1, one.earliest_exit), one.blocks.end + 1)
            costs_s = (ends - cut) * one.seconds_per_block + self.onwards_s[ends]
            costs_s[ends == self._n_blocks] += one.after_s
            to = int(ends[costs_s.argmin()])
            legs.append((i, cut, to))
            cut = to
        return legs

    def cheapest_through(self, limit_s: float, n_most: int) -> list[int]:
        """The segments over which a way costs so much at most, the cheapest first, entering each included."""
        through_s = self._through_s() + self._entry_s
        places = np.flatnonzero(through_s <= limit_s)
        ranked = places[np.lexsort((self._numbers[places], through_s[places].round(DIGITS)))]
        return [int(i) for i in self._numbers[ranked[:n_most]]]

    def _through_s(self) -> _Floats:
        """By segment: the least that a way costs which leads over it for a block at least, but for entering it."""
        before_s, run_s = 0.0, np.full(len(self._block_s), np.inf)
        through_s = run_s.copy()
        for cut in range(1, self._n_blocks + 1):
            entered_s = np.where(self._is_entered[cut - 1], before_s, np.inf)
            run_s = np.minimum(run_s, entered_s) + self._block_s
            left_s = np.where(self._is_left[cut], run_s, np.inf)
            through_s = np.minimum(through_s, left_s + self._left_s(cut))
            before_s = float((left_s + self._entry_s).min())
        return through_s
