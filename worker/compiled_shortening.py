"""Have a recorded step call fewer operations, and each by a shorter way; what comes out is the same to the bit.

With one row most of what an operation takes is its being called. So what is equal is computed once, views of views
become one view or none, the halves that a rotary embedding turns are negated once a step rather than in each block,
and operations are called by torch's own bindings: those of a recording go through a dispatcher that reads their
schema each time. Several operations that a kernel of ours does together become one (`worker.compiled_kernels`). All
that goes by what operations do, and not by architectures.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from worker.compiled_kernels import use_kernels
from worker.compiled_recording import GAP, LAYER

aten: Any = torch.ops.aten
_Node = Any
"""`fx.Node`, whose arguments are a union of all that there can be."""

_VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,  # noqa: SLF001 - it has no public name
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.transpose.int,
    aten.permute.default,
    aten.expand.default,
    aten.alias.default,
    aten.detach.default,
    aten.t.default,
}
"""What they give lies where their first argument lies."""

_DIRECT: dict[Any, Callable[..., Any]] = {
    aten.add.Tensor: torch.add,
    aten.bmm.default: torch.bmm,
    aten.cat.default: torch.cat,
    aten.clone.default: torch.clone,
    aten.cos.default: torch.cos,
    aten.div.Tensor: torch.div,
    aten.embedding.default: torch.embedding,
    aten.gelu.default: torch.nn.functional.gelu,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.neg.default: torch.neg,
    aten.relu.default: torch.relu,
    aten.roll.default: torch.roll,
    aten.rsqrt.default: torch.rsqrt,
    aten.silu.default: torch.nn.functional.silu,
    aten.sin.default: torch.sin,
    aten.sub.Tensor: torch.sub,
    aten.tanh.default: torch.tanh,
    aten.transpose.int: torch.transpose,
    aten.unsqueeze.default: torch.unsqueeze,
    aten.view.default: torch.Tensor.view,
    aten._weight_int4pack_mm_for_cpu.default: torch._weight_int4pack_mm_for_cpu,  # noqa: SLF001
}
"""The same operations, with the same arguments, by torch's own bindings."""


def shortened(recorded: fx.GraphModule) -> fx.GraphModule:
    """A graph that gives the same, with the same weights; the one that is given stays as it is."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(recorded.graph, {}))
    if not any(_writes(node) for node in graph.nodes):
        _share(graph)
        _join_views(graph)
        _negate_once(graph)
        _turn_inside_products(graph)
        use_kernels(graph)
        _share(graph)
        _call_directly(graph)
    return fx.GraphModule(recorded, graph)


def _writes(node: _Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _share(graph: fx.Graph) -> None:
    """Compute once what is computed alike; drop what nobody uses."""
    seen: dict[tuple[object, ...], _Node] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output") or node.target is GAP or _is_random(node):
            continue
        like = (node.op, node.target, repr(node.args), repr(node.kwargs))
        if (first := seen.setdefault(like, node)) is not node:
            node.replace_all_uses_with(first)
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and node.target is not GAP:
            graph.erase_node(node)


def _is_random(node: _Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _join_views(graph: fx.Graph) -> None:
    """Have each view that only gives another shape be one of the tensor itself, or that tensor."""
    for node in graph.nodes:
        if node.target not in _VIEWS:
            continue
        base = node.args[0]
        while base.target in _VIEWS:
            base = base.args[0]
        got, given = node.meta["val"], base.meta.get("val")
        if given is None or got.numel() != given.numel() or not (got.is_contiguous() and given.is_contiguous()):
            continue
        if got.shape == given.shape:
            node.replace_all_uses_with(base)
        else:
            node.target, node.args, node.kwargs = aten.view.default, (base, list(got.shape)), {}


def _negate_once(graph: fx.Graph) -> None:
    """Have cat(-b, a) * s be cat(b, a) * cat(-s, s), where a and b are halves and s comes again in other blocks."""
    found: dict[_Node, list[tuple[_Node, _Node]]] = {}
    for node in graph.nodes:
        for turned, factor in _products(node):
            whole = _turned(turned)
            if whole is not None and factor.meta["val"].shape[-1] == whole.meta["val"].shape[-1]:
                found.setdefault(factor, []).append((node, whole))
                break
    for factor, places in found.items():
        if len(places) == 1:
            continue
        half = factor.meta["val"].shape[-1] // 2
        signed = _first_half_negated(graph, factor, half)
        for node, whole in places:
            with graph.inserting_before(node):
                rolled = graph.call_function(aten.roll.default, (whole, [half], [-1]))
            rolled.meta["val"] = whole.meta["val"]
            node.args = (rolled, signed)


def _products(node: _Node) -> Iterator[tuple[_Node, _Node]]:
    if node.target is aten.mul.Tensor and all(isinstance(one, fx.Node) for one in node.args):
        one, other = node.args
        yield one, other
        yield other, one


def _turned(node: _Node) -> _Node | None:
    """The tensor of whose halves (a, b), of the last dimension, this is (-b, a); None if it is something else."""
    if node.target is not aten.cat.default or len(node.args) != 2 or len(node.args[0]) != 2:
        return None
    parts, dim = node.args
    n_dims = node.meta["val"].dim()
    negated, low = parts
    if dim % n_dims != n_dims - 1 or negated.target is not aten.neg.default:
        return None
    high = negated.args[0]
    if (
        high.target is not aten.slice.Tensor
        or low.target is not aten.slice.Tensor
        or high.args[0] is not low.args[0]
    ):
        return None
    whole = low.args[0]
    width = whole.meta["val"].shape[-1]
    ends = [_last_slice(one, n_dims, width) for one in (low, high)]
    return whole if ends == [(0, width // 2), (width // 2, width)] and width % 2 == 0 else None


def _last_slice(node: _Node, n_dims: int, width: int) -> tuple[int, int] | None:
    """Where a slice of the last dimension begins and ends; None if it is of another, or has steps."""
    if len(node.args) != 4 or node.args[1] % n_dims != n_dims - 1:
        return None
    start, end = node.args[2:]
    return (start, min(width, end)) if isinstance(start, int) and isinstance(end, int) else None


def _first_half_negated(graph: fx.Graph, node: _Node, half: int) -> _Node:
    value = node.meta["val"]
    dim, width = value.dim() - 1, value.shape[-1]
    with graph.inserting_after(node):
        low = graph.call_function(aten.slice.Tensor, (node, dim, 0, half))
    with graph.inserting_after(low):
        high = graph.call_function(aten.slice.Tensor, (node, dim, half, width))
    with graph.inserting_after(high):
        negated = graph.call_function(aten.neg.default, (low,))
    with graph.inserting_after(negated):
        whole = graph.call_function(aten.cat.default, ([negated, high], dim))
    low.meta["val"], high.meta["val"] = value.narrow(dim, 0, half), value.narrow(dim, half, width - half)
    whole.meta["val"] = value
    return whole


def _turn_inside_products(graph: fx.Graph) -> None:
    """Have torch's linear layers, which call the same products, turn the matrices that products turn first."""
    for node in graph.nodes:
        if node.target not in (aten.mm.default, aten.addmm.default) or node.kwargs:
            continue
        *bias, rows, turned = node.args
        if turned.target is aten.t.default and all(len(one.meta["val"].shape) == 1 for one in bias):
            node.target, node.args = torch.nn.functional.linear, (rows, turned.args[0], *bias)


def _call_directly(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target is aten.native_layer_norm.default:
            _norm_directly(graph, node)
        elif node.target is aten.slice.Tensor and len(node.args) == 4:
            tensor, dim, start, _ = node.args
            node.target, node.args = torch.narrow, (tensor, dim, start, node.meta["val"].shape[dim])
        elif node.target is LAYER:
            node.target, node.args = call_layer, node.args[:2]
        elif node.target is aten._to_copy.default and set(node.kwargs) == {"dtype"}:  # noqa: SLF001
            node.target, node.args, node.kwargs = torch.Tensor.to, (*node.args, node.kwargs["dtype"]), {}
        else:
            node.target = _DIRECT.get(node.target, node.target)


def call_layer(x: torch.Tensor, layer: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """What a layer gives that no graph can hold: pieces are given it in place of its number."""
    return layer(x)


def _norm_directly(graph: fx.Graph, node: _Node) -> None:
    """Only the normed values of a layer norm's three results are ever used."""
    users = list(node.users)
    if any(user.target is not operator.getitem or user.args[1] != 0 for user in users):
        return
    node.target = torch.layer_norm
    for user in users:
        user.replace_all_uses_with(node)
        graph.erase_node(user)
