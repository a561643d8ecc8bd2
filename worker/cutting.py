"""In which pieces this worker runs the prompts that begin here: by what its steps were measured to take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from worker.fairness import UNLABELLED, Tenant
from worker.flow import chunks
from worker.measures import Measures
from worker.prompt_costs import PieceBounds, StepCost, done_s, soonest_pieces
from worker.steps import SpanKey

UNMEASURED_TOKENS = 128
"""Of a piece before anything was measured."""
_ALONE = PieceBounds(least_tokens=32, grain=16, short_tokens=128, most_tokens=512, longest_s=0.5)
"""Who comes meanwhile has to wait for it. Fewer than 32 tokens read the weights for too few; kernels are made anew
for each length."""
_AMONG_OTHERS = replace(_ALONE, most_tokens=_ALONE.short_tokens)
_GAIN = 0.04
"""Worth another cut, once attention was measured. Otherwise prompts are cut alike: by kernels that are there, and
the same one to the same bits."""


class PromptCutter:
    """Cuts prompts; `chunk_tokens`: into even pieces of at most so many, whatever was measured."""

    def __init__(self, measures: Measures, chunk_tokens: int | None = None) -> None:
        self._measures = measures
        self._chunk_tokens = chunk_tokens
        self._used: dict[SpanKey, StepCost] = {}
        """By what prompts were cut last."""

    def pieces(self, positions: range, span: SpanKey, *, n_blocks: int, n_hops: int, n_others: int) -> list[range]:
        """A prompt's positions that go through `n_hops` workers, in the pieces to run one after the other.

        `n_blocks`: of the span, that run here. `n_others`: sessions that wait as long as a piece is run.
        """
        if self._chunk_tokens is not None:
            return self.even_pieces(positions)
        costs = self._measures.prompt_costs.get(span)
        per_block = costs.fitted() if costs is not None else None
        if per_block is None:
            self._used.pop(span, None)
            return self.even_pieces(positions)
        cost = per_block.of_blocks(n_blocks)
        pieces = _cut(cost, positions, n_hops, n_others)
        used = self._used.get(span)
        if used is not None and used.per_pair:
            before = _cut(used.of_blocks(n_blocks), positions, n_hops, n_others)
            if done_s(cost, before, n_hops) <= (1 + _GAIN) * done_s(cost, pieces, n_hops):
                return before
        self._used[span] = per_block
        return pieces

    def even_pieces(self, positions: range) -> list[range]:
        """The same, whatever was measured: for a part of a prompt that its client has cut."""
        return chunks(positions.start, len(positions), self._chunk_tokens or UNMEASURED_TOKENS)

    def as_others_come(
        self, pieces: Iterable[range], n_others: Callable[[], int], tenant: Tenant = UNLABELLED
    ) -> Iterator[range]:
        """The pieces, longer ones in several: if there are others by the time that their turn comes.

        For a prompt may take minutes, and not all that runs here was cut here. `tenant`: whose they are; others'
        streams have them cut as short as they can bear.
        """
        for piece in pieces:
            most = self._measures.bounds.piece_tokens(tenant, _AMONG_OTHERS.most_tokens)
            if len(piece) > most and self._chunk_tokens is None and n_others():
                yield from chunks(piece.start, len(piece), most)
            else:
                yield piece


def _cut(cost: StepCost, positions: range, n_hops: int, n_others: int) -> list[range]:
    bounds = _AMONG_OTHERS if n_others else _ALONE
    return soonest_pieces(cost, positions, n_stages=n_hops, bounds=bounds)
