"""What a batch takes by its number of tokens, learned from those that ran. Pure.

The first tokens of a batch cost most, since all weights are read for them; how much the others add depends on the
device, and isn't the same for decoding and for prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_SHARE_OF_SLOWER = 0.1
_SHARE_OF_FASTER = 0.4
"""Of a new measurement in the running averages. What made a batch slow was often nothing of its own: that it was
the first, or other programs."""


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What was measured so far."""

    points: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    """By the bits of the number of tokens: averages of that number, and of the seconds."""

    def with_batch(self, n_tokens: int, seconds: float) -> BatchCosts:
        """What is known once another batch was run."""
        bits = n_tokens.bit_length()
        old_tokens, old_s = self.points.get(bits, (float(n_tokens), seconds))
        share = _SHARE_OF_SLOWER if seconds > old_s else _SHARE_OF_FASTER
        point = (old_tokens + (n_tokens - old_tokens) * share, old_s + (seconds - old_s) * share)
        return BatchCosts({**self.points, bits: point})

    def seconds(self, n_tokens: int) -> float:
        """What a batch takes: on the line through the two sizes next to it; 0 before anything was measured.

        Of less than was ever measured: in proportion, which is too little. Who is charged too little comes to run
        alone, and is measured.
        """
        points = [(0.0, 0.0), *(self.points[bits] for bits in sorted(self.points))]
        if len(points) == 1:
            return 0.0
        above = next((i for i, (size, _) in enumerate(points) if size >= n_tokens), len(points) - 1)
        (size, low_s), (next_size, high_s) = points[max(1, above) - 1], points[max(1, above)]
        return max(low_s, low_s + (high_s - low_s) / (next_size - size) * (n_tokens - size))

    def seconds_at_most(self, n_tokens: int) -> float:
        """What a batch takes; of less than was ever measured: what the least that was measured takes."""
        if not self.points:
            return 0.0
        least_tokens, least_s = self.points[min(self.points)]
        return least_s if n_tokens < least_tokens else self.seconds(n_tokens)

    def n_within(self, longest_s: float, most: int) -> int:
        """The largest batch, of `most` tokens, that takes no longer; one token at least."""
        low, high = 1, max(1, most)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.seconds(middle) <= longest_s else (low, middle - 1)
        return low
