"""Make of two recordings, of a step with few sessions and of one with many, one that serves all numbers in between.

Both are the same operations with the same weights; only whole numbers differ, such as the lengths that a view is
given. Each of those has to be the same multiple of the number of sessions in both, and is computed from it at each
step. Modules of ours that do something else beyond some number of rows say so, so that
such a number isn't in between; whoever else does shows it, for then the recordings differ in more than numbers.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import fx, nn

from worker.batching_trial import trial_payload
from worker.compiled_recording import Gap, Recording, UncompilableError
from worker.compiled_shortening import shortened
from worker.stage import Stage, StageInput

_MOST_SESSIONS = 32
"""Of a batch that runs from a recording: more are rare, and what calling costs is little of their step."""
_Node = Any
"""`fx.Node`, whose arguments are a union of all that there can be."""


def size_ranges(stage: Stage) -> list[range]:
    """Numbers of sessions, from two on, cut where modules begin to do something else. Runs two tokens."""
    ends = {limit + 1 for limit in _row_limits(stage) if 2 <= limit < _MOST_SESSIONS}
    return [range(start, end) for start, end in pairwise(sorted({2, *ends, _MOST_SESSIONS + 1}))]


def between(few: Recording, many: Recording) -> Recording:
    """A recording, shortened, for as many sessions as `few`, as `many`, and all numbers in between.

    Raises:
        UncompilableError: they differ in more than multiples of the number of sessions.
    """
    if len(few.mask_rules) != len(many.mask_rules) or not _are_alike(few.gaps, many.gaps):
        raise UncompilableError("what its blocks ask of attention hangs on how many sessions there are")
    sizes = range(few.sizes.start, many.sizes.stop)
    graph = _Joining(shortened(few.graph), shortened(many.graph), sizes).joined()
    return replace(few, graph=graph, sizes=sizes)


class _Joining:
    """Two graphs that become one."""

    def __init__(self, few: fx.GraphModule, many: fx.GraphModule, sizes: range) -> None:
        self._few, self._many = few, many
        self._least, self._most = sizes[0], sizes[-1]
        self._graph = fx.Graph()
        self._n_sessions: _Node = None
        self._new: dict[_Node, _Node] = {}
        self._partners: dict[_Node, _Node] = {}
        self._multiples: dict[int, _Node] = {}

    def joined(self) -> fx.GraphModule:
        pairs = list(zip(self._few.graph.nodes, self._many.graph.nodes, strict=False))
        if len(pairs) != len(self._few.graph.nodes) or len(pairs) != len(self._many.graph.nodes):
            raise UncompilableError("it does more, or less, with more sessions")
        for one, other in pairs:
            self._partners[other] = one
            if one.op != "placeholder" and self._n_sessions is None:
                self._n_sessions = self._graph.placeholder("n_sessions")
            self._new[one] = self._node(one, other)
        return fx.GraphModule(self._few, self._graph)

    def _node(self, one: _Node, other: _Node) -> _Node:
        if one.op != other.op or (one.op == "call_function" and one.target is not other.target):
            raise UncompilableError(f"it calls {one.target} where it calls {other.target} with more sessions")
        if one.op == "get_attr":
            weights = getattr(self._few, one.target), getattr(self._many, other.target)
            if not _is_same(*weights):
                raise UncompilableError("a value that it keeps hangs on how many sessions there are")
            args, kwargs = (), {}
        elif one.op == "placeholder":
            args, kwargs = one.args, one.kwargs
        else:
            args, kwargs = self._both(one.args, other.args), self._both(one.kwargs, other.kwargs)
        new = self._graph.create_node(one.op, one.target, args, kwargs, name=one.name)
        new.meta = dict(one.meta)
        return new

    def _both(self, one: Any, other: Any) -> Any:
        """What stands for an argument of both."""
        if isinstance(one, fx.Node):
            if self._partners.get(other) is not one:
                raise UncompilableError("it computes with something else if there are more sessions")
            return self._new[one]
        if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)) and len(one) == len(other):
            return type(one)(self._both(*pair) for pair in zip(one, other, strict=True))
        if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            return {key: self._both(one[key], other[key]) for key in one}
        if type(one) is type(other) and one == other:
            return one
        if type(one) is int and type(other) is int:
            return self._number(one, other)
        raise UncompilableError(f"an argument, {one} with few sessions, {other} with more, isn't known in between")

    def _number(self, one: int, other: int) -> _Node:
        """What is `one` with the least sessions and `other` with the most: the same multiple of their number."""
        factor, rest = divmod(one, self._least)
        if rest or other != factor * self._most:
            raise UncompilableError(f"a number, {one} with few sessions, {other} with more, isn't known in between")
        if factor == 1:
            return self._n_sessions
        if factor not in self._multiples:
            with self._graph.inserting_after(self._n_sessions):
                self._multiples[factor] = self._graph.call_function(operator.mul, (self._n_sessions, factor))
        return self._multiples[factor]


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)


def _are_alike(some: Sequence[Gap], others: Sequence[Gap]) -> bool:
    """Whether these gaps are filled in the same way."""
    return len(some) == len(others) and all(
        (one.module, one.block, one.mask, one.computed, one.fixed.keys())
        == (other.module, other.block, other.mask, other.computed, other.fixed.keys())
        and all(one.fixed[name] is other.fixed[name] or one.fixed[name] == other.fixed[name] for name in one.fixed)
        for one, other in zip(some, others, strict=True)
    )


def _row_limits(stage: Stage) -> set[int]:
    """Numbers of rows up to which some module does one thing, and beyond which another; found by running two."""
    n_rows, limits = 2, set()

    def note(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if args and args[0].numel():
            most: Any = module.most_elements
            limits.add(most * n_rows // args[0].numel())

    hooks = [
        module.register_forward_pre_hook(note) for module in stage.modules() if hasattr(module, "most_elements")
    ]
    try:
        payload = trial_payload(stage, n_rows, torch.Generator().manual_seed(0))
        cache, n_logits = stage.new_cache(n_rows), n_rows if stage.is_last else 0
        stage.run([StageInput(payload=payload, position=0, cache=cache, n_logits=n_logits)])
    finally:
        for hook in hooks:
            hook.remove()
    return limits
