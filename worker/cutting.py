"""In which pieces this worker runs the prompts that begin here: by what its steps were measured to take.

The later hops of a route say what they take when a session is opened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from protocol.ids import WorkerId
from protocol.prompt_cost import PromptCost, RoutePromptCosts
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
_MOST_ROUTES = 256
"""That something is remembered of; who has more forgets the oldest."""


@dataclass(frozen=True, slots=True)
class Route:
    """The way of a prompt from this worker on."""

    span: SpanKey
    n_blocks: int
    """Of the span, that run here."""
    next: WorkerId | None
    tail: WorkerId
    n_later_hops: int


class PromptCutter:
    """Cuts prompts; `chunk_tokens`: into even pieces of at most so many, whatever was measured."""

    def __init__(self, measures: Measures, chunk_tokens: int | None = None) -> None:
        self._measures = measures
        self._chunk_tokens = chunk_tokens
        self._later: dict[Route, tuple[StepCost, ...]] = {}
        """Of later hops."""
        self._used: dict[Route, tuple[StepCost, ...]] = {}
        """By what prompts were cut last: of all hops."""

    def heard(self, route: Route, later: RoutePromptCosts) -> RoutePromptCosts:
        """Take in what the later hops of a route say of themselves, if each does.

        What to say of this one and them; nothing unless all is known. By what short prompts took, a hop would seem
        quicker or slower at long ones than it is.
        """
        own = self._own_cost(route)
        if len(later) != route.n_later_hops:
            return ()
        if route not in self._later:
            self._used.pop(route, None)  # by which all were like this one
        costs = [StepCost(base=cost.base, per_token=cost.per_token, per_pair=cost.per_pair) for cost in later]
        _put(self._later, route, tuple(costs))
        if own is None or not self._measures.prompt_costs[route.span].is_of_long_prompts:
            return ()
        return (PromptCost(own.base, own.per_token, own.per_pair), *later)

    def pieces(self, positions: range, route: Route, *, n_others: int) -> list[range]:
        """A prompt's positions, in the pieces to run one after the other.

        Hops of which nothing is known are taken to be like this one. `n_others`: sessions that wait as long as a
        piece is run.
        """
        if self._chunk_tokens is not None:
            return self.even_pieces(positions)
        own = self._own_cost(route)
        if own is None:
            self._used.pop(route, None)
            return self.even_pieces(positions)
        stages = (own, *self._later.get(route, (own,) * route.n_later_hops))
        pieces = _cut(stages, positions, is_among_others=n_others > 0)
        used = self._used.get(route)
        if used is not None and used[0].per_pair:
            before = _cut(used, positions, is_among_others=n_others > 0)
            if done_s(stages, before) <= (1 + _GAIN) * done_s(stages, pieces):
                return list(before)
        _put(self._used, route, stages)
        return list(pieces)

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
            most = self._measures.bounds().piece_tokens(tenant, _AMONG_OTHERS.most_tokens)
            if len(piece) > most and self._chunk_tokens is None and n_others():
                yield from chunks(piece.start, len(piece), most)
            else:
                yield piece

    def _own_cost(self, route: Route) -> StepCost | None:
        costs = self._measures.prompt_costs.get(route.span)
        per_block = costs.fitted() if costs is not None else None
        return per_block.of_blocks(route.n_blocks) if per_block is not None else None


@lru_cache(_MOST_ROUTES)
def _cut(stages: tuple[StepCost, ...], positions: range, *, is_among_others: bool) -> tuple[range, ...]:
    """Kept: prompts of a length come again, and are cut by what was used before each time."""
    return tuple(soonest_pieces(stages, positions, bounds=_AMONG_OTHERS if is_among_others else _ALONE))


def _put(known: dict[Route, tuple[StepCost, ...]], route: Route, costs: tuple[StepCost, ...]) -> None:
    """The latest route last."""
    known.pop(route, None)
    known[route] = costs
    if len(known) > _MOST_ROUTES:
        del known[next(iter(known))]
