"""Rotary embeddings whose frequencies follow the longest position of a forward (`dynamic_rope_update`).

A stage runs a text in other pieces than transformers does: a prompt in chunks, several tokens of an answer at once.
Here such embeddings are called as if each position were in the forward in which transformers has it: they see that
one's last position, and forget what an earlier call has left in them. Knows no model by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from worker.text_lengths import LengthRule, TextLengths

_LONGEST_TRIED = 2**22
"""Positions: whatever a config says, no more memory than for so many is taken to find out what its code does."""

_Runs = Sequence[tuple[int, int]]
"""Of positions: how many, and in a text of how many (`TextLengths.runs`)."""


def rotary_modules(model: nn.Module) -> list[Any]:
    """The rotary embeddings in a model whose frequencies follow positions."""
    return [module for module in model.modules() if any(map(_is_following, rope_types(module).values()))]


def rope_types(module: nn.Module) -> dict[str, str]:
    """Of a rotary embedding, by type of layer; empty for any other module."""
    found = getattr(module, "rope_type", {})
    return {"": found} if isinstance(found, str) else found


class Rotary:
    """All such embeddings of one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._modules = rotary_modules(model)
        self._remembers = any("dynamic" in kind for module in self._modules for kind in rope_types(module).values())
        """Whether what a call gives depends on earlier ones."""
        rules = tuple(rule for module in self._modules for rule in _rules(module))
        self.lengths = TextLengths(rules, _runs_anew_after(model, rules))
        """What the model tells apart."""

    @property
    def follows_lengths(self) -> bool:
        """Whether there are any."""
        return bool(self._modules)

    @contextmanager
    def rotating(self, position: int, n_tokens: int, n_prompt: int) -> Iterator[None]:
        """Have them rotate the positions of one forward, the next of a session with a prompt of `n_prompt`."""
        runs = list(self.lengths.runs(position, n_tokens, n_prompt)) if self._modules else []
        if not self._modules or (runs == [(n_tokens, position + n_tokens)] and not self._remembers):
            yield
            return
        with ExitStack() as restored:
            for module in self._modules:
                module.forward = partial(_in_runs, module, module.forward, runs)
                restored.callback(delattr, module, "forward")
            yield


def _in_runs(
    module: Any,
    forward: Callable[..., Any],
    runs: _Runs,
    x: torch.Tensor,
    position_ids: torch.Tensor,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """What an embedding gives for `position_ids` (..., n_tokens), each run as in a text of its own length."""
    results, start = [], 0
    for n_tokens, n_positions in runs:
        positions = position_ids[..., start : start + n_tokens]
        last = torch.full_like(positions[..., :1], n_positions - 1)
        _forget_lengths(module)
        results.append(forward(x, torch.cat((positions, last), dim=-1), *args, **kwargs))
        start += n_tokens
    if isinstance(results[0], torch.Tensor):
        return _joined(results)
    return tuple(_joined(parts) for parts in zip(*results, strict=True))


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """(..., n_tokens, width) of all runs, without the last position of each, which was there to be seen."""
    return torch.cat([part[..., :-1, :] for part in parts], dim=-2)


def _forget_lengths(module: Any) -> None:
    """Frequencies of a longer text stay until one of less than the original length comes: not here."""
    for layer_type, kind in rope_types(module).items():
        if "dynamic" in kind:
            prefix = f"{layer_type}_" if layer_type else ""
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))


def _is_following(kind: str) -> bool:
    return "dynamic" in kind or kind == "longrope"


def _rules(module: Any) -> Iterator[LengthRule]:
    for layer_type, kind in rope_types(module).items():
        if "dynamic" in kind:
            yield LengthRule(int(module.original_max_seq_len), is_long_alike=False)
        elif kind == "longrope":
            parameters = module.config.rope_parameters
            parameters = parameters[layer_type] if layer_type else parameters
            yield LengthRule(int(parameters["original_max_position_embeddings"]), is_long_alike=True)


class _CacheOf(Cache):
    """What the library takes for a cache of so many positions."""

    def __init__(self, n_positions: int) -> None:
        super().__init__(layers=[])
        self._n_positions = n_positions

    def __len__(self) -> int:
        return self._n_positions

    def get_seq_length(self, *_args: Any) -> int:
        """How many there are."""
        return self._n_positions


def _runs_anew_after(model: Any, rules: Sequence[LengthRule]) -> int | None:
    """The length beyond which the model's own code drops the cache of a text that is being generated."""
    n_positions = max((rule.n_alike for rule in rules), default=_LONGEST_TRIED)
    if n_positions >= _LONGEST_TRIED:
        return None
    token_ids = torch.zeros((1, n_positions + 1), dtype=torch.long)
    try:
        prepared = model.prepare_inputs_for_generation(
            token_ids,
            past_key_values=_CacheOf(n_positions),
            attention_mask=torch.ones_like(token_ids),
            next_sequence_length=1,
            use_cache=True,
        )
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError):
        return None  # one that can't be asked: of an encoder, say
    return n_positions if prepared.get("past_key_values") is None else None
