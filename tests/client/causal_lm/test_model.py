from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    pipeline,
)
from transformers.utils import logging as transformers_logging

from client.causal_lm import BrigadeForCausalLM
from demo.local_cluster import polls
from protocol.errors import ContextExceededError, InvalidRequestError, NotFoundError
from tests.client.causal_lm.conftest import Both

pytestmark = pytest.mark.timeout(120)

TEXTS = ["the thin", "in the middle of the night", "x"]


class AfterTokens(StoppingCriteria):
    """Ends an answer at its fourth token, as somebody's own criteria might."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.scores: set[Any] = set()

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.BoolTensor:
        self.scores.add(scores)
        return torch.full((len(input_ids),), input_ids.shape[1] >= self.width + 4)  # type: ignore[return-value]


class PressesOnce(StoppingCriteria):
    """Ctrl-C while answers come, at the first token of the first."""

    def __init__(self) -> None:
        self.is_pressed = False

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> torch.BoolTensor:
        if not self.is_pressed:
            self.is_pressed = True
            os.kill(os.getpid(), signal.SIGINT)
        return torch.full((len(input_ids),), fill_value=False)  # type: ignore[return-value]


class Shown(TextStreamer):
    """Keeps what it would print."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.shown: list[str] = []

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.shown.append(text + "|" * stream_end)


def test_a_padded_batch_gives_what_the_model_itself_gives(both: Both) -> None:
    batch = both.remote.tokenizer()(TEXTS, return_tensors="pt", padding=True)
    settings: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "repetition_penalty": 1.3}
    expected = both.local.generate(**batch, **settings)
    assert both.remote.generate(**batch, **settings).equal(expected)  # type: ignore[union-attr]
    # an answer that ends before the others is filled up
    ends = int(expected[1, -6])
    settings |= {"eos_token_id": [ends], "pad_token_id": 5}
    shorter = both.local.generate(**batch, **settings)
    assert 5 in shorter[:, batch["input_ids"].shape[1] :]
    assert both.remote.generate(**batch, **settings).equal(shorter)  # type: ignore[union-attr]
    whole = both.remote.generate(
        **batch, generation_config=GenerationConfig(return_dict_in_generate=True, **settings)
    )
    assert (whole.sequences.equal(shorter), whole.scores) == (True, None)  # type: ignore[union-attr]


def test_pipelines_take_it_for_the_model(both: Both, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = both.remote.tokenizer()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.ERROR, logger="transformers"):
            remote = pipeline("text-generation", model=both.remote, tokenizer=tokenizer)
    finally:
        transformers_logging.disable_propagation()
    assert caplog.records == []
    local = pipeline("text-generation", model=both.local, tokenizer=tokenizer)
    greedy = {"max_new_tokens": 6, "do_sample": False}
    chat = [{"role": "user", "content": "hi"}]
    for prompt, options in (
        (TEXTS, {"batch_size": 2, **greedy}),
        (chat, {"return_full_text": False, **greedy}),
        ("", greedy),
        ("the", {"generation_config": GenerationConfig(max_new_tokens=6, do_sample=True, top_k=1)}),
    ):
        assert remote(prompt, **options) == local(prompt, **options)


def test_streamers_and_criteria_are_told_of_every_token(both: Both) -> None:
    tokenizer = both.remote.tokenizer()
    one = tokenizer("in the", return_tensors="pt")
    plain = both.local.generate(**one, max_new_tokens=12, do_sample=False)
    for model in (both.remote, both.local):
        shown = Shown(tokenizer)
        model.generate(**one, max_new_tokens=12, do_sample=False, streamer=shown)
        assert "".join(shown.shown) == tokenizer.decode(plain[0], skip_special_tokens=True) + "|"
    rows = tokenizer(TEXTS, return_tensors="pt", padding=True)
    for inputs, options in (
        (rows, {"stopping_criteria": StoppingCriteriaList([AfterTokens(rows["input_ids"].shape[1])])}),
        (one, {"stop_strings": "T\n", "tokenizer": tokenizer}),
        (one, {"max_time": 1e-9}),
    ):
        expected = both.local.generate(**inputs, max_new_tokens=12, do_sample=False, **options)
        assert expected.shape[1] < inputs["input_ids"].shape[1] + 12
        assert both.remote.generate(**inputs, max_new_tokens=12, do_sample=False, **options).equal(expected)  # type: ignore[union-attr]


def test_samples_are_repeatable_and_each_its_own(both: Both) -> None:
    one = torch.tensor([[260, 5, 7]])

    def sampled(**settings: Any) -> list[list[int]]:
        torch.manual_seed(7)
        found = both.remote.generate(one, do_sample=True, max_new_tokens=8, eos_token_id=None, **settings)
        return found.tolist()  # type: ignore[union-attr]

    rows = sampled(num_return_sequences=3, pad_token_id=0)
    assert rows == sampled(num_return_sequences=3, pad_token_id=0)
    assert len({tuple(row) for row in rows}) == 3
    assert all(row[:3] == one[0].tolist() and len(row) == 11 for row in rows)
    greedy = both.local.generate(one, do_sample=False, max_new_tokens=8, eos_token_id=None, pad_token_id=0)
    assert sampled(top_k=1) == sampled(min_p=1.0) == greedy.tolist()


def test_what_it_cannot_do_it_says(both: Both) -> None:
    batch = torch.tensor([[0, 260], [0, 261]])
    for words, call in (
        ("a streamer shows one answer, and 2 are", lambda m: m.generate(batch, streamer=Shown(m.tokenizer()))),
        ("prompts are given twice", lambda m: m.generate(batch, input_ids=batch)),
        ("generate takes no inputs_embeds", lambda m: m.generate(batch, inputs_embeds=torch.ones(1))),
        ("token id 999 is not one of the model's 270", lambda m: m.generate(batch, eos_token_id=999)),
        ("workers hand tokens out and no logits", lambda m: m(batch)),
        ("workers choose what they compute in", lambda m: m.to(torch.bfloat16)),
        ("max_tokens can't be set here", lambda m: BrigadeForCausalLM(m._client, "tiny", max_tokens=3)),
        ("max_sessions is 0", lambda m: BrigadeForCausalLM(m._client, "tiny", max_sessions=0)),
    ):
        with pytest.raises(InvalidRequestError, match=words):
            call(both.remote)
    with pytest.raises(NotFoundError):
        BrigadeForCausalLM.from_cluster("other", url=both.config.url, api_key=both.config.api_key.text())


def test_if_one_row_fails_the_others_end(both: Both) -> None:
    batch = torch.cat([torch.zeros(1, 510, dtype=torch.long), torch.full((1, 510), 260)])
    mask = batch.clone()
    mask[0, -3:] = 1
    with pytest.raises(ContextExceededError, match="room for 2"):
        both.remote.generate(batch, attention_mask=mask, max_new_tokens=500, eos_token_id=None)
    for _ in polls(20.0):
        if both.n_sessions() == 0:
            return
    raise AssertionError(both.n_sessions())


def test_ctrl_c_in_a_batch_leaves_nothing_on_workers(both: Both) -> None:
    batch = torch.full((3, 4), 260)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's process may leave it out
    try:
        with pytest.raises(KeyboardInterrupt):
            both.remote.generate(
                batch,
                max_new_tokens=500,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=StoppingCriteriaList([PressesOnce()]),
            )
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in polls(20.0):
        if both.n_sessions() == 0:
            return
    raise AssertionError(both.n_sessions())


def test_it_looks_like_a_model(both: Both) -> None:
    with BrigadeForCausalLM.from_cluster("tiny", url=both.config.url, api_key=both.config.api_key.text()) as model:
        assert (model.config.model_type, model.dtype, model.device.type) == ("llama", torch.float32, "cpu")
        assert model.generation_config.eos_token_id == [1, 3]
        assert model.eval() is model.to("cpu") is model
        assert model.generate(max_length=4, bos_token_id=0, eos_token_id=None, pad_token_id=0).shape == (1, 4)  # type: ignore[union-attr]
    model.close()


def test_without_torch_the_import_says_what_to_install() -> None:
    program = "import sys\nsys.modules['torch'] = None\nimport client.causal_lm"
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=root)
    assert done.returncode == 1
    assert "torch isn't installed here: pip install '.[worker]' in Brigade's folder" in done.stderr
