"""Cut a recorded step at its gaps, and compile the pieces. Blocks that are alike are compiled once.

A piece takes what earlier pieces and gaps gave, and its weights, which are inputs like any other: so the compiled
code of a piece serves every block of its kind, and time for compiling doesn't grow with their number.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch._inductor import standalone_compile

from worker.compiled_recording import GAP, Recording, layer_of
from worker.compiled_shortening import call_layer, shortened

_Function = Callable[..., Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What runs between two gaps. Values go by numbers: 0 is the payload, 1 its positions; 2 may be how many."""

    run: _Function
    takes: tuple[int, ...]
    weights: tuple[Any, ...]
    """Taken after those: tensors, and layers that no graph can hold."""
    gives: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hole:
    """The gap after a piece, by the numbers of the values that go into it and that comes out."""

    states: tuple[int, int, int]
    computed: tuple[int, ...]
    gives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """A whole step: piece, hole, piece, ... piece."""

    pieces: tuple[Piece, ...]
    holes: tuple[Hole, ...]
    result: int
    n_values: int
    n_kinds: int
    """Pieces that differ: so many are compiled, if any are."""


def compile_pieces(recording: Recording, folder: Path) -> Pieces:
    """Compile what isn't in `folder` yet, where torch keeps all that it compiles.

    Raises:
        Exception: whatever torch raises: there is no compiler, or it can't do it.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # torch has no other way to be told
    return _pieces(recording, _compiled)


def as_they_are(recording: Recording) -> Pieces:
    """Nothing is compiled: each piece calls one operation after the other."""
    return _pieces(recording, lambda module, _inputs: module.forward)


def as_short_as_can_be(recording: Recording) -> Pieces:
    """Likewise, with fewer operations that give the same (`worker.compiled_shortening`)."""
    return as_they_are(replace(recording, graph=shortened(recording.graph)))


def _pieces(recording: Recording, make: Callable[[fx.GraphModule, Sequence[Any]], _Function]) -> Pieces:
    nodes = [node for node in recording.graph.graph.nodes if node.op != "get_attr"]
    numbers = {node: number for number, node in enumerate(nodes)}
    shared: dict[str, _Function] = {}
    pieces = []
    for segment in _segments(nodes):
        module, takes, weights = _cut_out(recording.graph, segment)
        inputs = [*map(_blank, takes), *weights]
        kind = _kind(module, inputs)
        if kind not in shared:
            shared[kind] = make(module, inputs)
        pieces.append(
            Piece(
                run=shared[kind],
                takes=tuple(numbers[node] for node in takes),
                weights=tuple(weights),
                gives=tuple(numbers[node] for node in _outputs(segment)),
            )
        )
    holes = tuple(
        Hole(
            states=(numbers[node.args[0]], numbers[node.args[1]], numbers[node.args[2]]),
            computed=tuple(numbers[one] for one in node.args[3]),
            gives=numbers[node],
        )
        for node in nodes
        if node.target is GAP
    )
    return Pieces(
        pieces=tuple(pieces),
        holes=holes,
        result=numbers[nodes[-1].args[0]],
        n_values=len(nodes),
        n_kinds=len(shared),
    )


def _segments(nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """What is computed before, between and after gaps."""
    segments: list[list[fx.Node]] = [[]]
    for node in nodes:
        if node.target is GAP:
            segments.append([])
        elif node.op == "call_function":
            segments[-1].append(node)
    return segments


def _outputs(segment: Sequence[fx.Node]) -> list[fx.Node]:
    """What others use of a segment."""
    inside = set(segment)
    return [node for node in segment if not inside.issuperset(node.users)]


def _cut_out(whole: fx.GraphModule, segment: Sequence[fx.Node]) -> tuple[fx.GraphModule, list[fx.Node], list[Any]]:
    """A segment as a graph of its own, the values that it takes, and the weights that it takes after them."""
    inside = set(segment)
    outside = list(dict.fromkeys(one for node in segment for one in node.all_input_nodes if one not in inside))
    takes = [node for node in outside if node.op != "get_attr"]
    held = [node for node in outside if node.op == "get_attr"]
    graph = fx.Graph()
    new = {node: graph.placeholder(f"x{number}") for number, node in enumerate((*takes, *held))}
    for number, node in enumerate(segment):  # names of our own: pieces of a kind read alike
        args, kwargs = fx.map_arg((node.args, node.kwargs), new.__getitem__)
        new[node] = graph.create_node(node.op, node.target, args, kwargs, name=f"v{number}")
    graph.output(tuple(new[node] for node in _outputs(segment)))
    return fx.GraphModule({}, graph), takes, [_weight(whole, node) for node in held]


def _weight(whole: fx.GraphModule, node: fx.Node) -> Any:
    weight = getattr(whole, str(node.target)).detach()
    return layer_of(weight).forward if any(user.target is call_layer for user in node.users) else weight


def _blank(node: fx.Node) -> Any:
    like = node.meta.get("val", 0)  # a number of the recordings' that serve several sizes
    if isinstance(like, int):
        return like
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device).zero_()


def _kind(module: fx.GraphModule, inputs: Sequence[Any]) -> str:
    """The same for pieces that the same compiled code can serve."""
    return "\n".join((module.code, *map(_layout, inputs)))


def _layout(one: Any) -> str:
    if isinstance(one, torch.Tensor):
        return f"{one.dtype} {one.device} {tuple(one.shape)} {one.stride()}"
    return type(one).__name__


def _compiled(module: fx.GraphModule, inputs: Sequence[Any]) -> _Function:
    settings: dict[str, Any] = {
        "compile_threads": 1,  # more are processes, which would take several hundred megabytes
        "cpp_cache_precompile_headers": False,  # torch keeps those in /tmp, under a name that anybody can guess
        "cpp.threads": torch.get_num_threads(),
        "emulate_precision_casts": True,  # round wherever the model's own code does: workers are to say the same
        "size_asserts": False,  # the shapes are those of the recording, whose result is compared
    }
    with torch.no_grad():
        function: _Function = standalone_compile(
            module, list(inputs), dynamic_shapes="from_example_inputs", options={"config_patches": settings}
        )
    return function
