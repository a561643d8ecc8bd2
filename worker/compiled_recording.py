"""Write down what a stage does with one new token of one session: a graph with a gap wherever a block attends.

The model's own code runs once, on tensors without values (torch's `make_fx`), so that its quirks, and our hooks and
stand-ins, are in the graph as they are in the model. What hangs on a session's cache is left out: at a gap the very
function runs that runs uncompiled, with the session's cache and a mask by the model's own rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import AttentionInterface, AttentionMaskInterface

from worker.attention import BatchCache, attention_of, implementation_of, mask_of, set_implementation
from worker.kv_cache import KVCache
from worker.packed_linear import PackedLinear
from worker.stage import Stage

_RECORDED = "brigade_recorded"

_recorder: ContextVar[_Recorder] = ContextVar("brigade_recorder")
"""What is recording: neither a mask nor an attention function is told."""


class UncompilableError(Exception):
    """A stage can't be written down; the message says why."""


Fill = Callable[
    [
        KVCache,
        Sequence[torch.Tensor | None],
        tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        Sequence[torch.Tensor],
    ],
    torch.Tensor,
]
"""Fills a gap: of a session's cache, the masks by the numbers of their rules, query, key and value, and what the
graph computed for it."""


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
    """A graph from a payload and its position, (1,), to what `Stage.run` gives; gaps are calls of `GAP`."""

    graph: fx.GraphModule
    gaps: tuple[Gap, ...]
    mask_rules: tuple[dict[str, Any], ...]
    implementation: str
    """Of attention, by the library's name, that fills the gaps."""

    def filler(self, gap: Gap) -> Fill:
        """What caches the token's key and value, and attends with its query: (1, 1, heads, width)."""
        attend = attention_of(gap.module, self.implementation)
        module, fixed, names = gap.module, gap.fixed, gap.computed

        def fill(
            cache: KVCache,
            masks: Sequence[torch.Tensor | None],
            states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
            computed: Sequence[torch.Tensor],
        ) -> torch.Tensor:
            query, key, value = states
            keys, values = cache.blocks[gap.block].update(key, value)
            mask = None if gap.mask is None else masks[gap.mask]
            arguments = dict(zip(names, computed, strict=True))
            attended: torch.Tensor = attend(module, query, keys, values, mask, **fixed, **arguments)[0]
            return attended

        return fill


def masks_at(implementation: str, rules: Sequence[dict[str, Any]], position: int) -> list[torch.Tensor | None]:
    """The masks of a token at this position, by the numbers of their rules; see `Recording`."""
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


def record(stage: Stage) -> Recording:
    """Write down what the stage does with one token.

    Raises:
        UncompilableError: it hangs on more than the token, its position, and what attention reads.
        Exception: whatever the model's code raises on tensors without values.
    """
    if stage.batching.because or stage.batching.joins_keys:  # what makes that impossible makes this impossible
        raise UncompilableError(stage.batching.because or "its blocks work on all keys of a session at every step")
    configs = stage.configs
    recorder = _Recorder(stage, implementation_of(configs[0]))
    n_logits = int(stage.is_last)

    def one_step(payload: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        return stage.forward(payload, position, recorder, n_logits)

    token = _recorder.set(recorder)
    set_implementation(configs, _RECORDED)
    try:
        with torch.no_grad(), _numbered(stage.packed_linears()):
            made = make_fx(one_step, tracing_mode="fake", _allow_non_fake_inputs=True)(*blank_step(stage))
    finally:
        set_implementation(configs, recorder.implementation)
        _recorder.reset(token)
    return Recording(
        graph=made,
        gaps=tuple(recorder.gaps),
        mask_rules=tuple(recorder.mask_rules),
        implementation=recorder.implementation,
    )


def blank_step(stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
    """A payload and a position of the kind that the graph takes."""
    if stage.is_first:
        payload = torch.zeros(1, dtype=torch.long, device=stage.device)
    else:
        payload = torch.zeros(1, stage.hidden_size, dtype=stage.dtype, device=stage.device)
    return payload, torch.zeros(1, dtype=torch.long, device=stage.device)


def _mask(*, batch_size: int, q_length: int, kv_length: int, q_offset: int, kv_offset: int, **rule: Any) -> int:  # noqa: ARG001
    """The number of the rule, in place of a mask."""
    rules = _recorder.get().mask_rules
    if any(isinstance(one, FakeTensor) for one in rule.values()):
        raise UncompilableError("the rule of its mask hangs on what it computes")
    rules.append(rule)
    return len(rules) - 1


def _attend(
    module: nn.Module, query: torch.Tensor, _key: torch.Tensor, _value: torch.Tensor, mask: Any, **arguments: Any
) -> tuple[torch.Tensor, None]:
    return _recorder.get().attend(module, query, mask, arguments), None


@contextmanager
def _numbered(linears: Sequence[PackedLinear]) -> Iterator[None]:
    """While this is open, packed layers appear in graphs as calls with their number.

    Their weights are tensors that no graph can hold. The number is a tensor, an input like weights are: so graphs
    of blocks that are alike are alike.
    """
    try:
        for linear in linears:
            number = next(_numbers)
            _packed_linears[number] = linear
            linear.__dict__["forward"] = _by_number(torch.tensor(number), linear.out_features)
        yield
    finally:
        for linear in linears:
            del linear.forward  # its class's again


def _by_number(number: torch.Tensor, n_out: int) -> Callable[[torch.Tensor], torch.Tensor]:
    product: Callable[..., torch.Tensor] = torch.ops.brigade.packed_product
    return lambda x: product(x, number, n_out)


def _packed_product(x: torch.Tensor, number: torch.Tensor, _n_out: int) -> torch.Tensor:
    product: torch.Tensor = _packed_linears[int(number)](x)
    return product


_numbers = count()
_packed_linears: WeakValueDictionary[int, PackedLinear] = WeakValueDictionary()

_library: Any = torch.library.Library("brigade", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define("attend(Tensor query, Tensor key, Tensor value, Tensor[] computed, int gap) -> Tensor")
_library.define("packed_product(Tensor x, Tensor number, int n_out) -> Tensor")
_library.impl(
    "attend",
    lambda query, _key, value, _computed, _gap: query.new_empty((1, 1, query.shape[1], value.shape[3])),
    "Meta",
)
_library.impl("packed_product", lambda x, _number, n_out: x.new_empty((*x.shape[:-1], n_out)), "Meta")
_library.impl("packed_product", _packed_product, "CPU")
GAP = torch.ops.brigade.attend.default

AttentionInterface.register(_RECORDED, _attend)
AttentionMaskInterface.register(_RECORDED, _mask)
