"""Who contradicts itself: answers the very same probe twice as its own rounding doesn't explain. Pure.

Where two differ and nobody can decide between them, both are asked the same again. An honest worker agrees with
itself, in whatever batch; one that is wrong now and then is hardly wrong in the same way twice. Nobody else can
have a worker contradict itself, so this takes no third one, no kept answer, and no trust in the other: it says
nothing of who is wrong in the same way each time. As with all else, nobody fails by one probe, nor by two: fresh
ones, each asked twice of that worker alone, have to show it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN, Comparison

OWN_REPEAT = "own repeat"
"""In place of another worker: its own second answer to the same probe. Agreeing with oneself shows nothing."""


def contradictory(repeats: Sequence[Comparison | None]) -> int | None:
    """Which of those that were asked again contradicts itself, the first of several; None stands for no answer.

    The other one's repeat makes no difference: two that are both wrong now and then must not shield one another.
    """
    return next((at for at, one in enumerate(repeats) if one is not None and not one.agrees), None)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How often fresh probes showed again that a worker contradicts itself."""

    n_fresh: int = 0
    n_shown: int = 0

    def after(self, repeat: Comparison) -> Confirmation:
        """With one more fresh probe, asked twice."""
        return Confirmation(self.n_fresh + 1, self.n_shown + (not repeat.agrees))

    @property
    def is_shown(self) -> bool:
        """Whether it has failed."""
        return self.n_shown >= N_AGAIN

    @property
    def is_over(self) -> bool:
        """Whether no more probes are to be asked."""
        return self.is_shown or self.n_fresh >= MAX_CONFIRMATIONS
