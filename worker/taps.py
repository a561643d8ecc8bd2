"""Where hidden states go into a stage's first block and come out of its last: hooks on these two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class _ReachedError(Exception):
    """Ends a forward at the first block. Carries what goes into it."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__("the first block is reached")
        self.states = states


def into_first_block(blocks: nn.ModuleList, run: Callable[[], object]) -> torch.Tensor:
    """What goes into the first of the blocks, (batch, n_tokens, hidden), when `run` calls them; none runs."""

    def reached(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        raise _ReachedError(args[0] if args else kwargs["hidden_states"])

    hook = blocks[0].register_forward_pre_hook(reached, with_kwargs=True)
    try:
        run()
    except _ReachedError as exc:
        return exc.states
    finally:
        hook.remove()
    raise AssertionError("who calls a model calls its blocks")


class Taps:
    """Hooks on the first and on the last of `blocks`, unless they are the model's own first and last."""

    def __init__(self, blocks: nn.ModuleList, *, is_first: bool, is_last: bool) -> None:
        self.incoming: torch.Tensor | None = None
        """(1, n_tokens, hidden): replaces whatever the model made of its embeddings."""
        self.outgoing: torch.Tensor | None = None
        """(1, n_tokens, hidden): what the last block gave."""
        self._blocks = blocks
        self._is_first, self._is_last = is_first, is_last
        self._hooks: list[Any] = []

    def attach(self) -> None:
        """Begin."""
        if not self._is_first:
            self._hooks.append(self._blocks[0].register_forward_pre_hook(self._replace_input, with_kwargs=True))
        if not self._is_last:
            self._hooks.append(self._blocks[-1].register_forward_hook(self._take_output))

    def detach(self) -> None:
        """Leave the blocks as they were."""
        while self._hooks:
            self._hooks.pop().remove()

    def _replace_input(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        incoming, self.incoming = self.incoming, None
        if args:
            return (incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": incoming}

    def _take_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.outgoing = output[0] if isinstance(output, tuple) else output
