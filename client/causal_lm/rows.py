"""Batches as transformers has them, rows of one length, and prompts as a cluster takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from protocol.errors import InvalidRequestError


def checked_batch(inputs: torch.Tensor) -> torch.Tensor:
    """Refuse what isn't a batch of token ids (rows, tokens).

    Raises:
        InvalidRequestError: another shape, or no integers.
    """
    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.numel() == 0:
        raise InvalidRequestError(
            f"input_ids are {tuple(inputs.shape)} of {inputs.dtype}; they must be (rows, tokens) of integers"
        )
    return inputs.long()


def mask_of(
    ids: torch.Tensor, given: torch.Tensor | None, *, pad_token_id: int | None, eos_token_ids: Sequence[int]
) -> torch.Tensor:
    """Which of `ids` (rows, tokens) are the prompts' own.

    As transformers: without a mask all but padding, if that token isn't also the one that ends answers.

    Raises:
        InvalidRequestError: the mask has another shape.
    """
    if given is not None:
        if given.shape != ids.shape:
            raise InvalidRequestError(
                f"attention_mask is {tuple(given.shape)} and input_ids are {tuple(ids.shape)}: make them the same"
            )
        return given.bool()
    if pad_token_id is None or pad_token_id in eos_token_ids:
        return torch.ones_like(ids, dtype=torch.bool)
    return ids.ne(pad_token_id)


def prompts_of(ids: torch.Tensor, mask: torch.Tensor) -> list[list[int]]:
    """The token ids of each row, without the padding on its left.

    Raises:
        InvalidRequestError: a row is nothing but padding, or has some elsewhere.
    """
    prompts: list[list[int]] = []
    for number, (row, is_own) in enumerate(zip(ids.tolist(), mask.tolist(), strict=True)):
        if not any(is_own):
            raise InvalidRequestError(f"row {number} of input_ids is nothing but padding")
        start = is_own.index(True)
        if not all(is_own[start:]):
            raise InvalidRequestError(
                f"row {number} of input_ids has padding at token {start + is_own[start:].index(False)}, right of "
                "its first: the answer follows the last one; pad on the left (tokenizer.padding_side = 'left')"
            )
        prompts.append(row[start:])
    return prompts


def with_answers(ids: torch.Tensor, answers: Sequence[Sequence[int]], pad_token_id: int | None) -> torch.Tensor:
    """Prompts and answers (rows, tokens), filled up on the right.

    Raises:
        InvalidRequestError: some answers are shorter, and there is nothing to fill them up with.
    """
    n_longest = max(len(answer) for answer in answers)
    n_shortest = min(len(answer) for answer in answers)
    if pad_token_id is None and n_shortest < n_longest:
        raise InvalidRequestError(
            f"the answers have {n_shortest} to {n_longest} tokens, and the model names none to fill them up with: "
            "pass pad_token_id"
        )
    filled = [[*answer, *[pad_token_id or 0] * (n_longest - len(answer))] for answer in answers]
    return torch.cat([ids, torch.tensor(filled, dtype=ids.dtype, device=ids.device)], dim=1)
