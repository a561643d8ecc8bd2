"""Attention of many new tokens on the CPU, by oneDNN's products where they take less time than torch's kernel.

torch's own kernel multiplies through MKL, or in bfloat16 by a plain loop, unless the processor has AMX: in long
prompts it takes as much time as all linear layers of the model. oneDNN's products take half of that
(docs/decisions/0009). Scores and their softmax are float32, as in the kernel; so are the sums.
"""

from __future__ import annotations

import math
from functools import cache

import structlog
import torch
from torch.nn.functional import scaled_dot_product_attention

from worker.onednn import product
from worker.timed import timed

log = structlog.get_logger(__name__)

LEAST_PRODUCTS = 3_000_000
"""Of a head of keys (rows times positions times width): with fewer, calling takes longer than the kernel."""
_BLOCK_SCORES = 2**19
"""Of a head, rows times positions, computed at a time by a thread: they stay in its cache, or nearly."""
_MOST_THREADS = 8
_LEAST_ROWS = 96
_MOST_BLOCKS = 24
"""Of a step: each has a shape of its own, and oneDNN keeps the code of few (`worker.heap`)."""
_GAIN = 0.85
"""Of the kernel's time: what these products have to take at most. Far from what was seen (0.4 to 0.7), so that what
one trial finds doesn't hang on its noise."""
_N_TRIALS = 8

_DTYPES = (torch.float32, torch.bfloat16)


def pays(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether `attend` takes less time than torch's kernel; tried once for each type and number of threads."""
    n_rows = query.shape[2] * query.shape[1] // key.shape[1]
    if n_rows * key.shape[2] * query.shape[3] < LEAST_PRODUCTS:
        return False
    return settle_prompt_attention(query.device, query.dtype)


def settle_prompt_attention(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `attend` takes less time there, with as many threads as torch has now; tried unless it is known."""
    return device.type == "cpu" and dtype in _DTYPES and is_faster(dtype, torch.get_num_threads())


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """Attention of several new tokens of one sequence, (1, n_tokens, heads, width).

    `query` (1, heads, n_tokens, width), `key` and `value` (1, key heads, positions, width); the last of the
    positions are the new tokens'. `mask` (1, 1, n_tokens, positions) is added to the scores; None: each token
    attends to itself and to all before it.
    """
    _, n_heads, n_tokens, width = query.shape
    n_key_heads, n_positions = key.shape[1], key.shape[2]
    n_groups = n_heads // n_key_heads
    start = n_positions - n_tokens
    queries = query[0].float() * (width**-0.5 if scaling is None else scaling)
    attended = query.new_empty((1, n_tokens, n_heads, value.shape[3]))
    block = _block_tokens(n_tokens, n_positions, n_groups)
    after = torch.full((block, block), -torch.inf).triu_(1) if mask is None else None
    for head in range(n_key_heads):
        heads = slice(head * n_groups, (head + 1) * n_groups)
        keys, values = key[0, head].float(), value[0, head].t()
        for first in range(0, n_tokens, block):
            end = min(first + block, n_tokens)
            n_new, n_seen = end - first, start + end
            rows = queries[heads, first:end].reshape(n_groups * n_new, width)
            scores = product(rows, keys[:n_seen]).view(n_groups, n_new, n_seen)
            if mask is not None:
                scores += mask[0, 0, first:end, :n_seen]
            elif after is not None:
                scores[..., start + first :] += after[:n_new, :n_new]
            shares = scores.softmax(-1).to(value.dtype).view(n_groups * n_new, n_seen)
            sums = product(shares, values[:, :n_seen])
            attended[0, first:end, heads] = sums.view(n_groups, n_new, -1).transpose(0, 1)
    return attended


@cache
def is_faster(dtype: torch.dtype, n_threads: int) -> bool:
    """Whether oneDNN gives the right result here, in less time than torch's kernel; `n_threads`: of torch's, now.

    Tried once for each, in some 30 ms.
    """
    try:
        ours_s, kernels_s = _trial(dtype)
    except (RuntimeError, NotImplementedError, AttributeError):  # oneDNN isn't built in, or not for this processor
        ours_s = kernels_s = math.inf
    pays_off = ours_s < _GAIN * kernels_s
    log.debug("prompt_attention_tried", dtype=str(dtype), n_threads=n_threads, ours_s=ours_s, kernels_s=kernels_s)
    return pays_off


def _trial(dtype: torch.dtype) -> tuple[float, float]:
    """The least seconds of ours, infinity if it is wrong, and of the kernel's."""
    n_heads, n_key_heads, n_tokens, n_positions, width = 6, 2, 128, 512, 64
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, *shape, width, generator=generator).to(dtype)
        for shape in ((n_heads, n_tokens), (n_key_heads, n_positions), (n_key_heads, n_positions))
    )
    mask = torch.full((1, 1, n_tokens, n_positions), -torch.inf).triu_(n_positions - n_tokens + 1).to(dtype)
    rows, row_mask = query.view(1, n_key_heads, -1, width), mask.repeat(1, 1, n_heads // n_key_heads, 1)

    def ours() -> torch.Tensor:
        return attend(query, key, value, mask, None)

    def kernels() -> torch.Tensor:
        return scaled_dot_product_attention(rows, key, value, attn_mask=row_mask)

    # once as much has been given back, glibc keeps what is freed instead of mapping it anew for each product
    torch.empty(4 * _BLOCK_SCORES)
    expected = kernels().view(1, n_heads, n_tokens, width).transpose(1, 2)
    if not torch.allclose(ours(), expected, atol=8 * torch.finfo(dtype).eps):
        return math.inf, 0.0
    taken = [(timed(ours), timed(kernels)) for _ in range(_N_TRIALS)]
    return min(one for one, _ in taken), min(other for _, other in taken)


def _block_tokens(n_tokens: int, n_positions: int, n_groups: int) -> int:
    """How many tokens attend at a time."""
    n_scores = _BLOCK_SCORES * min(_MOST_THREADS, torch.get_num_threads())
    n_rows = max(_LEAST_ROWS, n_scores // n_positions)
    n_blocks = min(_MOST_BLOCKS, math.ceil(n_tokens / max(1, n_rows // n_groups)))
    return math.ceil(n_tokens / n_blocks)
