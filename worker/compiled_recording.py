"""Write down what a stage does with one new token of each session: a graph with a gap wherever a block attends.

The model's own code runs once, on tensors without values (torch's `make_fx`), so that its quirks, and our hooks and
stand-ins, are in the graph as they are in the model. What hangs on a session's cache is left out: at a gap the very
function runs that runs uncompiled, with the session's cache and a mask by the model's own rule; with several
sessions it is the one that has each attend to its own (`worker.attention`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AttentionInterface, AttentionMaskInterface

from worker.attention import SESSIONS, BatchCache, attention_of, implementation_of, mask_of, set_implementation
from worker.coded_panels import CodedPanels
from worker.kv_cache import KVCache
from worker.packed_linear import PackedLinear
from worker.quantised import QuantisedLinear
from worker.screened_head import ScreenedHead
from worker.stage import Stage
from worker.widened_linear import WidenedLinear

_RECORDED = "brigade_recorded"

_one_at_a_time = threading.Lock()
"""Torch's tracer replaces methods of all modules while it traces; two at once would put back the other's."""
_recorder: ContextVar[_Recorder] = ContextVar("brigade_recorder")
"""What is recording: neither a mask nor an attention function is told."""


class UncompilableError(Exception):
    """A stage can't be written down; the message says why."""


Fill = Callable[
    [
        KVCache | BatchCache,
        Sequence[Any],
        tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        Sequence[torch.Tensor],
    ],
    torch.Tensor,
]
"""Fills a gap: of the cache of a session or a batch, the masks by the numbers of their rules, query, key and value,
and what the graph computed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Where a block attends."""

    module: nn.Module
    block: int
    """Whose cache it attends to."""
    mask: int | None
    """The number of the mask's rule, if it has a mask."""
    fixed: dict[str, Any]
    """Arguments of attention that are the same at every step."""
    computed: tuple[str, ...]
    """Names of those that the graph computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A graph from a payload and its positions, (n_sessions,), to what `Stage.run` gives; gaps are calls of `GAP`.

    One that serves several numbers of sessions takes their number after those.
    """

    graph: fx.GraphModule
    sizes: range
    """Of how many sessions, with one token each, it is."""
    gaps: tuple[Gap, ...]
    mask_rules: tuple[dict[str, Any], ...]
    implementation: str
    """Of attention, by the library's name, that fills the gaps."""

    def filler(self, gap: Gap) -> Fill:
        """What caches keys and values, and attends with the queries: (1, n_sessions, heads, width)."""
        attend = attention_of(gap.module, self.implementation)
        module, fixed, names = gap.module, gap.fixed, gap.computed

        def fill(
            cache: KVCache | BatchCache,
            masks: Sequence[Any],
            states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
            computed: Sequence[torch.Tensor],
        ) -> torch.Tensor:
            query, key, value = states
            keys, values = cache.update(key, value, gap.block)
            mask = None if gap.mask is None else masks[gap.mask]
            arguments = dict(zip(names, computed, strict=True))
            attended: torch.Tensor = attend(module, query, keys, values, mask, **fixed, **arguments)[0]
            return attended

        return fill


def masks_at(implementation: str, rules: Sequence[dict[str, Any]], position: int) -> list[Any]:
    """The masks of a token at this position, by the numbers of their rules; of a batch, all its sessions'."""
    return [mask_of(implementation, position, 1, rule) for rule in rules]


class _Recorder(BatchCache):
    """What the model takes for its cache, and for attention, while it is written down."""

    def __init__(self, stage: Stage, implementation: str) -> None:
        super().__init__([stage.new_cache(1)], [1], implementation=implementation, joins_keys=False)
        self.gaps: list[Gap] = []
        self.mask_rules: list[dict[str, Any]] = []
        self._cached: tuple[int, torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note what is to be cached."""
        self._cached = (layer_idx, key_states, value_states)
        return key_states, value_states

    def attend(self, module: nn.Module, query: torch.Tensor, mask: int | None, arguments: dict[str, Any]) -> Any:
        """Leave a gap."""
        if self._cached is None:
            raise UncompilableError("a block attends to what another one has cached")
        (block, key, value), self._cached = self._cached, None
        computed = {name: one for name, one in arguments.items() if isinstance(one, FakeTensor)}
        fixed = {name: one for name, one in arguments.items() if name not in computed}
        self.gaps.append(Gap(module=module, block=block, mask=mask, fixed=fixed, computed=tuple(computed)))
        return GAP(query, key, value, list(computed.values()), len(self.gaps) - 1)


def record(stage: Stage, n_sessions: int = 1) -> Recording:
    """Write down what the stage does with one token of each of so many sessions.

    Raises:
        UncompilableError: it hangs on more than the token, its position, and what attention reads.
        Exception: whatever the model's code raises on tensors without values.
    """
    if stage.batching.because or stage.batching.joins_keys:  # what makes that impossible makes this impossible
        raise UncompilableError(stage.batching.because or "its blocks work on all keys of a session at every step")
    configs = stage.configs
    recorder = _Recorder(stage, implementation_of(configs[0]))
    n_logits = n_sessions if stage.is_last else 0

    def one_step(payload: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return stage.forward(payload, positions, recorder, n_logits)

    token = _recorder.set(recorder)
    set_implementation(configs, _RECORDED)
    try:
        with _one_at_a_time, torch.no_grad(), _numbered(_opaque_layers(stage)):
            made = make_fx(one_step, tracing_mode="fake", _allow_non_fake_inputs=True)(
                *_blank_step(stage, n_sessions)
            )
    finally:
        set_implementation(configs, recorder.implementation)
        _recorder.reset(token)
    _check_rules(recorder)
    return Recording(
        graph=made,
        sizes=range(n_sessions, n_sessions + 1),
        gaps=tuple(recorder.gaps),
        mask_rules=tuple(recorder.mask_rules),
        implementation=recorder.implementation if n_sessions == 1 else SESSIONS,
    )


def _check_rules(recorder: _Recorder) -> None:
    """A rule may hold a tensor without values; one that it made itself it may read in long texts only."""
    for rule in recorder.mask_rules:
        is_computed = any(isinstance(one, FakeTensor) for one in rule.values())
        if is_computed or isinstance(_mask_of_long_text(recorder, rule), FakeTensor):
            raise UncompilableError("the rule of its mask hangs on what it computes")


def _mask_of_long_text(recorder: _Recorder, rule: dict[str, Any]) -> torch.Tensor | None:
    return mask_of(recorder.implementation, rule.get("local_size") or 0, 1, rule)


def layer_of(number: torch.Tensor) -> nn.Module:
    """The layer that a call of `LAYER` means."""
    return _layers[int(number)]


def _blank_step(stage: Stage, n_sessions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A payload and positions of the kind that the graph takes."""
    positions = torch.zeros(n_sessions, dtype=torch.long, device=stage.device)
    if stage.is_first:
        return positions.clone(), positions
    payload = torch.zeros(n_sessions, stage.hidden_size, dtype=stage.dtype, device=stage.device)
    return payload, positions


def _opaque_layers(stage: Stage) -> list[tuple[nn.Module, int]]:
    """Layers that no graph can hold, each with how many values it gives of a row.

    The weights of packed ones are no ordinary tensors, or go through kernels that torch doesn't know, others are
    widened in pieces, and what a head that looks closely at few tokens does hangs on the values.
    """
    layers: list[tuple[nn.Module, int]] = [
        (module, module.out_features)
        for module in stage.modules()
        if isinstance(module, (PackedLinear, WidenedLinear))
        or (isinstance(module, QuantisedLinear) and isinstance(module.matrix, CodedPanels))
    ]
    if isinstance(stage.head, ScreenedHead):
        layers.append((stage.head, len(stage.head.weight)))
    return layers


def _mask(*, batch_size: int, q_length: int, kv_length: int, q_offset: int, kv_offset: int, **rule: Any) -> int:  # noqa: ARG001
    """The number of the rule, in place of a mask."""
    rules = _recorder.get().mask_rules
    rules.append(rule)
    return len(rules) - 1


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    _key: torch.Tensor,
    _value: torch.Tensor,
    attention_mask: Any,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    return _recorder.get().attend(module, query, attention_mask, arguments), None


@contextmanager
def _numbered(layers: Sequence[tuple[nn.Module, int]]) -> Iterator[None]:
    """While this is open, these layers appear in graphs as calls with their number.

    The number is a tensor, an input like weights are: so graphs of blocks that are alike are alike.
    """
    try:
        for layer, n_out in layers:
            if layer not in _numbers:
                _numbers[layer] = torch.tensor(next(_next_number))
                _layers[int(_numbers[layer])] = layer
            layer.__dict__["forward"] = _by_number(_numbers[layer], n_out)
        yield
    finally:
        for layer, _ in layers:
            layer.__dict__.pop("forward", None)  # its class's again


def _by_number(number: torch.Tensor, n_out: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: LAYER(x, number, n_out)


def _called_by_number(x: torch.Tensor, number: torch.Tensor, _n_out: int) -> torch.Tensor:
    product: torch.Tensor = layer_of(number).forward(x)
    return product


_next_number = count()
_numbers: WeakKeyDictionary[nn.Module, torch.Tensor] = WeakKeyDictionary()
_layers: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()

_library: Any = torch.library.Library("brigade", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor query, Tensor key, Tensor value, Tensor[] computed, int gap) -> Tensor")
_library.define("layer(Tensor x, Tensor number, int n_out) -> Tensor")
_library.impl(
    "attend",
    lambda query, _key, value, _computed, _gap: query.new_empty((1, *query.shape[2:0:-1], value.shape[3])),
    "Meta",
)
_library.impl("layer", lambda x, _number, n_out: x.new_empty((*x.shape[:-1], n_out)), "Meta")
_library.impl("layer", _called_by_number, "CPU")
GAP = torch.ops.brigade.attend.default
LAYER = torch.ops.brigade.layer.default

AttentionInterface.register(_RECORDED, _attend)
AttentionMaskInterface.register(_RECORDED, _mask)
