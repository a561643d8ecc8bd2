"""What one session has cost on this worker so far, and what the hops before say that it has cost there."""

from __future__ import annotations

from protocol.hop_timings import HopTimings
from worker.steps import StepOutput

_US_PER_S = 1e6


class HopClock:
    """Sums of one session, on the event loop. `is_told`: whether its steps and tokens are to carry them."""

    def __init__(self, *, is_told: bool) -> None:
        self.before: tuple[HopTimings, ...] = ()
        """Of the hops before this one, as the latest step says."""
        self.n_steps = 0
        self.memory_s = self.queue_s = self.compute_s = self.sampling_s = 0.0
        self._is_told = is_told

    def ran(self, output: StepOutput, took_s: float) -> None:
        """Count a step that came back from the engine after `took_s`."""
        self.n_steps += 1
        self.compute_s += output.compute_s
        self.sampling_s += output.sampling_s
        self.queue_s += max(0.0, took_s - output.compute_s - output.sampling_s)

    def said(self) -> tuple[HopTimings, ...]:
        """What the next step or token is to carry: the hops before, and this one; nothing unless it is wanted."""
        if not self._is_told:
            return ()
        own = HopTimings(
            round(self.memory_s * _US_PER_S),
            round(self.queue_s * _US_PER_S),
            round(self.compute_s * _US_PER_S),
            round(self.sampling_s * _US_PER_S),
        )
        return (*self.before, own)

    def figures(self) -> dict[str, float]:
        """For the log, and for spans."""
        return {
            "n_steps": self.n_steps,
            "memory_s": round(self.memory_s, 6),
            "queue_s": round(self.queue_s, 6),
            "compute_s": round(self.compute_s, 6),
            "sampling_s": round(self.sampling_s, 6),
        }
