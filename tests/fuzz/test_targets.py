"""Every target holds for its seeds, for a few altered ones, and for all that was found: `make fuzz` in short."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.__main__ import Outcome, explained
from tests.fuzz.edits import Edit, edited
from tests.fuzz.engines import run_examples
from tests.fuzz.target import MAX_INPUT_BYTES, FindingError, Target, check
from tests.fuzz.targets import TARGETS

FINDINGS = Path(__file__).parent / "findings"
SEED = 20_261_101
SLOW = ("gguf-models", "model-configs", "chat-templates", "backup-parts", "backups", "tokenizers")
"""Milliseconds for each input rather than microseconds."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_holds_for_its_seeds_and_for_what_comes_of_them(name: str) -> None:
    target = TARGETS[name]
    for data in target.seeds():
        check(target, data)
    run_examples(target, 8 if name in SLOW else 60, seed_number=SEED)


@pytest.mark.parametrize("path", sorted(FINDINGS.glob("*/*")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_handled(path: Path) -> None:
    check(TARGETS[path.parent.name], path.read_bytes())


def a_target(run: object) -> Target:
    return Target(name="t", run=run, seeds=lambda: [b"seed"], allowed=(KeyError,))  # type: ignore[arg-type]


def test_errors_memory_and_time_are_findings_but_documented_errors_are_not() -> None:
    check(a_target({}.__getitem__), b"key")
    with pytest.raises(FindingError, match="ValueError"):
        check(a_target(int), b"x")
    with pytest.raises(FindingError, match="bytes of memory"):
        check(a_target(lambda data: bytes(100 * 2**20)), b"")


def test_an_engine_finds_what_only_an_altered_seed_does_and_says_with_which_input() -> None:
    def refuses(data: bytes) -> None:
        if len(data) > 8:
            raise ValueError("too long")

    with pytest.raises(FindingError, match="too long") as caught:
        run_examples(a_target(refuses), 200, seed_number=SEED)
    assert len(caught.value.args[1]) > 8


def test_who_isnt_done_in_time_is_no_finding_and_says_what_to_do() -> None:
    late = Outcome(name="no-such-target", n_inputs=0, took_s=241.0, is_clean=False, last_words="", is_over=False)
    assert late.words == "NOT DONE"
    said = explained(late, time.monotonic())
    assert "not done after 241 s, 180 s more" in said
    assert "-m tests.fuzz no-such-target" in said
    ended = Outcome(name="no-such-target", n_inputs=0, took_s=3.0, is_clean=False, last_words="an import failed")
    assert ended.words == "FINDING"
    assert "the process ended at the start" in explained(ended, time.monotonic())


@pytest.mark.parametrize("kind", range(9))
def test_edits_of_anything_are_bounded(kind: int) -> None:
    for data in (b"", b"x", b'{"a": [1, "b"]}', bytes(MAX_INPUT_BYTES)):
        for at in (0, 1, MAX_INPUT_BYTES):
            assert len(edited(data, [Edit(kind, at, 200, 255)] * 3, [b"", b"other"])) <= MAX_INPUT_BYTES
