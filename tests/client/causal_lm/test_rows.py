from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.causal_lm.rows import checked_batch, mask_of, prompts_of, with_answers
from protocol.errors import InvalidRequestError

PAD = 0
TEXTS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=6), min_size=1, max_size=5)


@given(TEXTS, TEXTS)
def test_padding_on_the_left_comes_off_and_answers_are_filled_up_on_the_right(
    prompts: list[list[int]], answers: list[list[int]]
) -> None:
    answers = [answers[number % len(answers)] for number in range(len(prompts))]
    width, n_longest = max(map(len, prompts)), max(map(len, answers))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = mask_of(ids, None, pad_token_id=PAD, eos_token_ids=(9,))
    assert torch.equal(mask, mask_of(ids, mask.long(), pad_token_id=None, eos_token_ids=()))
    assert prompts_of(ids, mask) == prompts
    whole = with_answers(ids, answers, PAD)
    assert whole[:, :width].equal(ids)
    assert [row[: len(answer)] for row, answer in zip(whole[:, width:].tolist(), answers, strict=True)] == answers
    assert whole.shape == (len(prompts), width + n_longest)
    assert whole.dtype == torch.int64


def test_a_token_that_also_ends_answers_is_no_padding_without_a_mask() -> None:
    ids = torch.tensor([[0, 0, 4]])
    assert prompts_of(ids, mask_of(ids, None, pad_token_id=0, eos_token_ids=(0,))) == [[0, 0, 4]]


def test_batches_that_no_answer_can_follow_are_refused() -> None:
    ids = torch.tensor([[3, 4, 5], [3, 4, 0]])
    with pytest.raises(
        InvalidRequestError, match=r"row 1 of input_ids has padding at token 2.*padding_side = 'left'"
    ):
        prompts_of(ids, ids.ne(0))
    with pytest.raises(InvalidRequestError, match="row 0 of input_ids is nothing but padding"):
        prompts_of(ids, torch.zeros_like(ids))
    with pytest.raises(InvalidRequestError, match=r"attention_mask is \(2, 2\) and input_ids are \(2, 3\)"):
        mask_of(ids, ids[:, :2], pad_token_id=None, eos_token_ids=())
    for wrong in (torch.tensor([1, 2]), torch.ones(1, 2), torch.ones((1, 0), dtype=torch.long)):
        with pytest.raises(InvalidRequestError, match="input_ids are"):
            checked_batch(wrong)
    with pytest.raises(InvalidRequestError, match=r"the answers have 1 to 2 tokens.*pass pad_token_id"):
        with_answers(ids, [[1], [1, 2]], None)
