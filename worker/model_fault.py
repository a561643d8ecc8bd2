"""What a stage puts out that no sound model does: said as the model's fault, so that no neighbour is blamed for it.

A worker looks at its own output, as nobody else can tell a damaged file from a worker that lies: who hands such
values on all the same is to blame for them.
"""

from __future__ import annotations

import torch

from protocol.errors import ModelFaultError
from protocol.ids import BlockRange
from protocol.tensors import is_finite

_MEND = (
    "the model's weights are damaged, or a precision is too narrow for them; an operator adds the model anew "
    "from a sound copy (`coord model add` checks it), or sets another --precision"
)


def check_handed_on(states: torch.Tensor, blocks: BlockRange, position: int) -> None:
    """Look at what is to be handed on (n_tokens, hidden) of the positions from `position` on.

    Raises:
        ModelFaultError: NaN or infinity.
    """
    if is_finite(states):
        return
    n_bad = states.numel() - int(torch.isfinite(states).sum())
    raise ModelFaultError(
        f"{n_bad} of the {states.numel()} values that blocks {blocks} gave from position {position} on are NaN or "
        f"infinite: {_MEND}"
    )


def logits_fault(position: int) -> ModelFaultError:
    """What there is to say where no token can be chosen."""
    return ModelFaultError(f"the logits for position {position} are not finite: {_MEND}")
