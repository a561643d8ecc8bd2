"""A recorded step of a fixed number of sessions, all of whose tensors stay where they are from step to step.

Of few rows most of a step's time is that tensors are made, looked up and let go, and the more so the longer a
worker waited in between: that code has left the processor's caches. So a step is run once, and all that it makes is
given a place; what makes it again is a list of calls with nothing left to be worked out (`worker.static_calls`).
Views are made once. Every second piece of a kind has the same places, and so have all numbers of sessions. The last
piece makes what it gives anew: that is handed out, and may be as wide as the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from worker.attention import BatchCache
from worker.compiled_pieces import Piece, Pieces
from worker.compiled_recording import Fill, Gap
from worker.kernels import Call
from worker.kv_cache import KVCache
from worker.static_calls import call_of, call_of_many
from worker.static_gap import StaticGap


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Those of a step."""

    caches: Sequence[KVCache]
    cache: KVCache | BatchCache
    """That of the only one, or the batch of all."""
    masks: Sequence[Any]
    """By the numbers of their rules."""


class Places:
    """Memory for what steps make, by what makes it; as much as the largest number of sessions needs."""

    def __init__(self, most_sessions: int) -> None:
        self._most_sessions = most_sessions
        self._memory: dict[tuple[Any, ...], torch.Tensor] = {}

    def of(self, key: tuple[Any, ...], made: torch.Tensor, n_sessions: int) -> torch.Tensor:
        """A tensor that looks as `made` does, and holds the same."""
        n_numbers = 1 + sum((size - 1) * stride for size, stride in zip(made.shape, made.stride(), strict=True))
        memory = self._memory.get(key)
        if memory is None or memory.dtype != made.dtype or memory.shape[0] < n_numbers:
            most = -(-n_numbers // n_sessions) * self._most_sessions
            memory = self._memory[key] = torch.empty(most, dtype=made.dtype)
        return memory.as_strided(made.shape, made.stride()).copy_(made)


def can_stay(pieces: Pieces) -> bool:
    """Whether all pieces are operations one after the other, none of which writes into what it is given."""
    return all(map(_is_plain, pieces.pieces))


def _is_plain(piece: Piece) -> bool:
    module = getattr(piece.run, "__self__", None)
    return isinstance(module, fx.GraphModule) and not any(
        getattr(getattr(node.target, "_schema", None), "is_mutable", False) for node in module.graph.nodes
    )


class StaticStep:
    """A step of one number of sessions as calls."""

    def __init__(
        self, pieces: Pieces, gaps: Sequence[tuple[Gap, Fill]], places: Places, given: Sequence[Any], run: Sessions
    ) -> None:
        """Runs it once: `given` are a payload and positions, and perhaps how many sessions there are.

        Raises:
            Exception: whatever an operation raises.
        """
        self._places, self._n_sessions = places, given[1].shape[0]
        self._held: list[Any] = []
        """What calls have addresses of."""
        values: list[Any] = [0] * pieces.n_values
        values[: len(given)] = given
        values[:2] = [self._place(("given", number), one) for number, one in enumerate(given[:2])]
        self._payload, self._positions = values[:2]
        self._parts: list[tuple[list[Call], StaticGap]] = []
        own = _used_later(pieces)
        for number, (piece, hole, (gap, fill)) in enumerate(
            zip(pieces.pieces[:-1], pieces.holes, gaps, strict=True)
        ):
            key = (number,) if number in own else (id(piece.run), number % 2)
            calls = self._run(piece, values, key)
            query, keys, kept_values = (values[one] for one in hole.states)
            attended = query.new_zeros((1, query.shape[2], query.shape[1], kept_values.shape[3]))
            values[hole.gives] = self._place(("gap", *key), attended)
            computed = [values[one] for one in hole.computed]
            here = StaticGap(gap, fill, (query, keys, kept_values), computed, values[hole.gives])
            here.fill(run.caches, run.cache, run.masks)
            self._parts.append((calls, here))
        self._last = pieces.pieces[-1]
        self._result = self._last.gives.index(pieces.result)
        self._values = values

    def __call__(self, payload: torch.Tensor, positions: torch.Tensor, run: Sessions) -> torch.Tensor:
        """What comes out for all sessions."""
        self._payload.copy_(payload)
        self._positions.copy_(positions)
        for calls, gap in self._parts:
            for function, arguments in calls:
                function(*arguments)
            gap.fill(run.caches, run.cache, run.masks)
        given = [self._values[number] for number in self._last.takes]
        result: torch.Tensor = self._last.run(*given, *self._last.weights)[self._result]
        return result.clone() if _is_view(result, given) else result

    def _place(self, key: tuple[Any, ...], made: torch.Tensor) -> torch.Tensor:
        return self._places.of(key, made, self._n_sessions)

    def _run(self, piece: Piece, values: list[Any], key: tuple[Any, ...]) -> list[Call]:
        """The calls of a piece; what it gives goes into `values`."""
        given = iter((*(values[number] for number in piece.takes), *piece.weights))
        made: dict[fx.Node, Any] = {}
        calls = []
        graph: fx.Graph = piece.run.__self__.graph  # type: ignore[attr-defined]  # of `_is_plain`
        for number, node in enumerate(graph.nodes):
            if node.op == "placeholder":
                made[node] = next(given)
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
            if node.op == "output":
                for place, one in zip(piece.gives, args[0], strict=True):
                    values[place] = one
                    # the piece after next may put something where that lies
                    if _is_view(one, [values[taken] for taken in piece.takes]):
                        values[place] = self._place((*key, -1 - place), one)
                        calls.append((values[place].copy_, (one,)))
                break
            result = node.target(*args, **kwargs)
            if isinstance(result, (tuple, list)):
                if not all(_is_view(one, (args, kwargs)) for one in result):
                    result = [self._place((*key, number, which), one) for which, one in enumerate(result)]
                    calls.append(call_of_many(node.target, args, kwargs, result))
            elif isinstance(result, torch.Tensor) and not _is_view(result, (args, kwargs)):
                result = self._place((*key, number), result)
                calls.append(call_of(node.target, args, kwargs, result))
            made[node] = result
            self._held.append((args, kwargs, result))
        return calls


def _is_view(result: Any, arguments: Any) -> bool:
    """Whether it is a tensor that lies where an argument lies."""
    if not isinstance(result, torch.Tensor):
        return False
    place = result.untyped_storage().data_ptr()
    return any(
        isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() == place
        for one in tree_leaves(arguments)
    )


def _used_later(pieces: Pieces) -> set[int]:
    """Numbers of pieces of which, or of whose gap, something is used later than by the next piece and its gap."""
    last_use: dict[int, int] = {}
    for number, piece in enumerate(pieces.pieces):
        last_use |= dict.fromkeys(piece.takes, number)
        if number < len(pieces.holes):
            hole = pieces.holes[number]
            last_use |= dict.fromkeys((*hole.states, *hole.computed), number)
    own = set()
    for number, hole in enumerate(pieces.holes):
        given = (*pieces.pieces[number].gives, hole.gives)
        if any(last_use.get(one, number) > number + 1 for one in given):
            own.add(number)
    return own
