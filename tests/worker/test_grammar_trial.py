from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import pytest

from protocol.errors import InvalidRequestError, OverloadedError
from protocol.messages import Constraint
from tests.support.tiny_tokenizer import tiny_tokenizer
from worker import grammar_trial as trial_module
from worker.grammar import TokenizerSource
from worker.grammar_trial import GrammarTrial

FINE = Constraint(kind="regex", text="ab")
N_RULES = 4000
CHAIN = "start: a0\n" + "\n".join(f"a{n}: a{n + 1}" for n in range(N_RULES)) + f'\na{N_RULES}: "b"'
"""Compiled in a thread of the worker's it ended the worker."""
PATTERNS = [{"type": "string", "pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(1, 40)]
ENDLESS = json.dumps({"allOf": PATTERNS})
"""An instance of all patterns is looked for, for hours."""


@pytest.fixture
def source(tmp_path: Path) -> TokenizerSource:
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer().to_str())
    return TokenizerSource(folder=tmp_path, vocab_size=264)


@pytest.mark.parametrize(("kind", "text"), [("lark", CHAIN), ("json_schema", ENDLESS)])
def test_what_would_end_the_process_or_never_end_is_refused_and_others_go_on(
    source: TokenizerSource, kind: str, text: str
) -> None:
    trial, hostile = GrammarTrial(), Constraint(kind=kind, text=text)  # type: ignore[arg-type]
    trial.check(source, FINE)
    for _ in range(2):
        with pytest.raises(InvalidRequestError, match=f"to this {kind}: compiling it takes longer than 5 s, more"):
            trial.check(source, hostile)
    trial.check(source, Constraint(kind="regex", text="cd"))


def test_what_is_wrong_is_said_and_nothing_is_tried_twice(source: TokenizerSource) -> None:
    trial = GrammarTrial()
    for _ in range(2):
        trial.check(source, FINE)
        with pytest.raises(InvalidRequestError, match="unclosed group"):
            trial.check(source, Constraint(kind="regex", text="(a"))
        (source.folder / "tokenizer.json").unlink(missing_ok=True)
        assert trial._process is not None
        trial._process.kill()
        trial._process.wait()


def test_the_process_ends_with_whoever_asks_it(source: TokenizerSource) -> None:
    trial = GrammarTrial()
    trial.check(source, FINE)
    process = trial._process
    assert process is not None
    del trial
    gc.collect()
    assert process.returncode is not None


def test_a_process_that_cannot_be_started_is_no_fault_of_the_constraint(
    source: TokenizerSource, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command, why in ((os.devnull, "no process can be started"), (shutil.which("true"), "couldn't be started")):
        monkeypatch.setattr(trial_module.sys, "executable", command)
        with pytest.raises(OverloadedError, match=why):
            GrammarTrial().check(source, FINE)
