"""Which lengths of text a model tells apart, and with which of them it rotates a position. Pure.

Most models rotate a position by its number alone. Where frequencies follow the length (transformers' `longrope` and
`dynamic`), a prompt's positions are all rotated as in a text as long as the prompt, however it is cut into pieces;
those of the answer, which the library runs one by one, each as in the text that it ends.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, slots=True)
class LengthRule:
    """Of a rotary embedding: all texts of at most `n_alike` positions are rotated alike."""

    n_alike: int
    is_long_alike: bool
    """Whether all longer ones are, too (longrope: short factors and long ones); else each length in its own way."""

    def kind(self, n_positions: int) -> int:
        """The same number for lengths that are rotated alike; never less for a longer text."""
        if n_positions <= self.n_alike:
            return 0
        return 1 if self.is_long_alike else n_positions


@dataclass(frozen=True, slots=True)
class TextLengths:
    """The rules of all rotary embeddings of a model; none if it rotates all texts alike."""

    rules: tuple[LengthRule, ...] = ()
    runs_anew_after: int | None = None
    """A text that outgrows so many positions is run anew, so that all of it is rotated alike (transformers does so
    with Phi-3 and its kin); None: what was run before stays as it was rotated."""

    def are_alike(self, one: int, other: int) -> bool:
        """Whether sessions with prompts of these lengths (0: not said) have the same positions rotated alike.

        All that both have are, or the first isn't: frequencies that differ for the first differ for the prompts.
        """
        is_known_of_both = not self.rules or (one == 0) == (other == 0)
        return is_known_of_both and self._kinds(max(one, 1)) == self._kinds(max(other, 1))

    def runs(self, position: int, n_tokens: int, n_prompt: int) -> Iterator[tuple[int, int]]:
        """Positions [position, position + n_tokens) in runs that are rotated alike: how many, in texts of how many.

        `n_prompt`: the length of the session's prompt; 0: not said, so what is run at once is rotated alike.
        """
        end = position + n_tokens
        if n_prompt == 0:
            yield n_tokens, end
            return
        longest = (max(n_prompt, start + 1) for start in range(position, end))
        for _, run in groupby(longest, self._kinds):
            lengths = list(run)
            yield len(lengths), lengths[-1]

    def anew_after(self, n_prompt: int) -> int | None:
        """The length beyond which the text of a session with such a prompt is to be run anew; None: it never is.

        0: not said, and nobody would do so.
        """
        is_within = self.runs_anew_after is not None and 0 < n_prompt <= self.runs_anew_after
        return self.runs_anew_after if is_within else None

    def _kinds(self, n_positions: int) -> tuple[int, ...]:
        return tuple(rule.kind(n_positions) for rule in self.rules)


ALL_ALIKE = TextLengths()
