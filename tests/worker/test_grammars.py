from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from protocol.errors import InvalidRequestError, OverloadedError, StaleEpochError
from protocol.messages import Constraint, SamplingParams
from tests.support.tiny_tokenizer import ids_of, tiny_tokenizer
from worker import grammar_trial
from worker import grammars as grammars_module
from worker.grammar import TokenizerSource
from worker.grammars import Grammars


@pytest.fixture
def tokenizer(tmp_path: Path) -> TokenizerSource:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    return TokenizerSource(folder=tmp_path, vocab_size=264)


def held_to(text: str, **fields: int) -> SamplingParams:
    constraint = Constraint(kind="regex", text=text)
    return SamplingParams(max_tokens=9, stop_token_ids=(1,), constraint=constraint, **fields)


async def test_a_grammar_goes_on_where_the_answer_is(tokenizer: TokenizerSource) -> None:
    grammars, prompt = Grammars(), [7, *ids_of("ab")]
    found = await grammars.of(held_to("abc", n_answered=2), prompt, tokenizer)
    assert found is not None
    assert found.allowed(ids_of("ab")).nonzero()[0].tolist() == ids_of("c")
    (tokenizer.folder / "tokenizer.json").unlink()  # it was read once
    assert await grammars.of(held_to("abc"), prompt, tokenizer) is not None
    assert await grammars.of(SamplingParams(max_tokens=1), prompt, None) is None


async def test_what_is_wrong_is_said(tokenizer: TokenizerSource) -> None:
    grammars = Grammars()
    with pytest.raises(InvalidRequestError, match="unclosed group"):
        await grammars.of(held_to("(a"), [7], tokenizer)
    with pytest.raises(StaleEpochError, match="another route"):
        await grammars.of(held_to("a"), [7], None)


async def test_nothing_is_compiled_here_that_was_not_tried_before(
    tokenizer: TokenizerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_trial.sys, "executable", os.devnull)
    with pytest.raises(OverloadedError, match="no process can be started to try the constraint"):
        await Grammars().of(held_to("a"), [7], tokenizer)


async def test_no_more_are_used_than_memory_is_meant_for(
    tokenizer: TokenizerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars_module, "MAX_GRAMMARS", 1)
    grammars = Grammars()
    kept = await grammars.of(held_to("a"), [7], tokenizer)
    with pytest.raises(OverloadedError, match="1 are used"):
        await grammars.of(held_to("a"), [7], tokenizer)
    del kept
    assert await grammars.of(held_to("a"), [7], tokenizer) is not None


async def test_compiling_has_a_deadline_and_the_loop_goes_on(
    tokenizer: TokenizerSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars_module, "COMPILE_S", 0.05)
    monkeypatch.setattr(grammars_module, "MAX_WAITING", 2)
    grammars, freed = Grammars(), threading.Event()
    busy = [grammars._threads.submit(freed.wait, 30.0) for _ in range(grammars_module.N_THREADS)]
    try:
        asked = [grammars.of(held_to("a"), [7], tokenizer) for _ in range(3)]
        results = await asyncio.gather(*asked, return_exceptions=True)
    finally:
        freed.set()
    assert [type(result) for result in results] == [OverloadedError] * 3
    assert ["2 constraints are being compiled" in str(result) for result in results] == [False, False, True]
    assert "wasn't compiled within 0.05 s" in str(results[0])
    assert all(one.result(30.0) for one in busy)
