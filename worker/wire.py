"""How hidden states travel: exactly as computed or, over a slow link, as int8 with a scale for each group.

`auto` sends a chunk of a prompt as int8 where the link was measured to need longer than `SLOW_S` for it otherwise;
but never what is in float32, whose promise is the exact result, and never the rows of sampled and guessed tokens:
they are short, and what follows depends on each.
"""

from __future__ import annotations

from typing import Literal

import torch

from protocol.compatibility import knows
from protocol.errors import ProtocolError
from protocol.messages import MAX_DRAFTS, Step

WireChoice = Literal["auto", "exact", "int8"]
GROUPS = (64, 32, 16)
"""Values along the hidden size that share a scale; the first that divides it."""
SLOW_S = 0.02
"""Less than a chunk takes to compute where there is no accelerator, and what is sent meanwhile costs nothing."""
_SCALE_BYTES = 4
_MOST = 127


def group_of(choice: WireChoice, states: torch.Tensor, *, version: str, bytes_per_s: float | None) -> int:
    """How many values share a scale if these states (n_tokens, hidden) go as int8; 0 if they go as they are.

    `version` is the neighbour's, `bytes_per_s` the bandwidth to it, None if that isn't measured yet.
    """
    if choice == "exact":
        return 0
    if choice == "auto":
        is_exact = states.shape[0] <= MAX_DRAFTS + 1 or states.dtype == torch.float32
        if is_exact or bytes_per_s is None or states.nbytes / bytes_per_s <= SLOW_S:
            return 0
    if not knows(Step, "group", version):
        return 0
    return next((group for group in GROUPS if states.shape[1] % group == 0), 0)


def why_exact(choice: WireChoice, hidden_size: int) -> str:
    """Why states of so many values never go as int8, though that was asked for; empty if they do."""
    if choice != "int8" or any(hidden_size % group == 0 for group in GROUPS):
        return ""
    return f"int8 has a scale for each {GROUPS[-1]} values, and this model's hidden size is {hidden_size}"


def why_exact_to(choice: WireChoice, peer: str, version: str) -> str:
    """Why states never go as int8 to this worker, which speaks so old a version; empty if they do."""
    if choice != "int8" or knows(Step, "group", version):
        return ""
    return f"worker {peer} speaks protocol {version}, which has no int8: upgrade it"


def packed(states: torch.Tensor, group: int) -> bytes:
    """The codes of all groups, row by row, and then their scales (float32)."""
    groups = states.float().reshape(-1, group)
    scales = groups.abs().amax(dim=1, keepdim=True) / _MOST
    codes = (groups / scales.clamp_min(torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return codes.numpy().tobytes() + scales.numpy().tobytes()


def unpacked(payload: bytes | memoryview, n_tokens: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """The states (n_tokens, hidden) that were packed, nearly. What isn't finite there isn't here either.

    Raises:
        ProtocolError: so many bytes aren't so many rows.
    """
    n_bytes = len(payload)
    n_groups, rest = divmod(n_bytes, group + _SCALE_BYTES)
    if rest or n_groups == 0 or n_groups % n_tokens:
        raise ProtocolError(f"{n_bytes} bytes for {n_tokens} rows of int8 in groups of {group}")
    data = bytearray(payload)
    codes = torch.frombuffer(data, dtype=torch.int8, count=n_groups * group)
    scales = torch.frombuffer(data, dtype=torch.float32, offset=n_groups * group)
    return (codes.reshape(-1, group) * scales[:, None]).to(dtype).reshape(n_tokens, -1)
