"""Have a stage run one new token of a session, or of each of several, from a recording, compiled or as it is.

Between its products a step of one token is hundreds of small operations, which cost more by being called one by one
than by what they do. A recording of them calls the very same ones, without the model's modules around them;
compiled, those between two products are one. Either is tried against the stage as it is, and isn't used if the
results differ.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import torch

from protocol.background import garbage_collected_at_end
from worker.batch_run import is_device_broken
from worker.batching_trial import TOLERANCES, difference, trial_payload
from worker.compiled_pieces import Pieces, as_short_as_can_be, as_they_are, compile_pieces
from worker.compiled_recording import Recording, UncompilableError, record
from worker.compiled_sizes import between, size_ranges
from worker.compiled_step import RecordedStep
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput
from worker.steps import Compiling
from worker.timed import timed

log = structlog.get_logger(__name__)

_PROMPT_TOKENS = 5
_TRIED_TOKENS = 6
_TRIED_TOGETHER = 2
"""Of each of several sessions."""
_MOST_WORDS = 200
_SLOW_S = 0.03
"""Of a step of one token, beyond which nothing is recorded: for that some twenty are run, of up to 32 tokens."""
_T = TypeVar("_T")
_Cut = Callable[[Recording], Pieces]


@dataclass(slots=True)
class Recordings:
    """Those of a stage, made one by one when there is time."""

    stage: Stage
    is_one_due: bool
    """Whether steps of one session are to be recorded."""
    _due: list[range] | None = None
    """Numbers of sessions of which none was tried yet; None: not known yet how they are grouped."""
    _step_s: float | None = None
    """What one token takes; None: not tried yet."""

    def make_one(self, sizes: Collection[int]) -> bool:
        """Make one that is needed, if batches came of these numbers of sessions; whether there was any.

        Takes a second or two.
        """
        if not self._is_worth_it():
            return False
        if self.is_one_due:
            self.is_one_due = False
            if replay_stage(self.stage):
                self._due = []  # what keeps one session's steps from being recorded keeps several sessions'
            return True
        if self._due is None and sizes:
            self._due = self._ranges()
        wanted = next((due for due in self._due or () if any(size in due for size in sizes)), None)
        if wanted is None:
            return False
        assert self._due is not None
        self._due.remove(wanted)
        replay_batches(self.stage, wanted)
        return True

    def _is_worth_it(self) -> bool:
        """Found out once: beside slow steps calling is little, and who comes meanwhile would wait for many."""
        if self._step_s is None:
            self._step_s = min(
                self._tried("step_not_tried", partial(_step_s, self.stage), math.inf) for _ in range(3)
            )
        return self._step_s <= _SLOW_S

    def _ranges(self) -> list[range]:
        return self._tried("sizes_not_found", partial(size_ranges, self.stage), [])

    def _tried(self, event: str, find: Callable[[], _T], otherwise: _T) -> _T:
        """What is found by running the stage, or what to go by if that fails: it serves without."""
        try:
            return find()
        except Exception as exc:  # of the library's own code, or for want of memory
            if is_device_broken(exc):
                raise
            log.warning(event, blocks=str(self.stage.blocks), error=type(exc).__name__)
            return otherwise


def _step_s(stage: Stage) -> float:
    """Seconds that one token takes now."""
    payload = trial_payload(stage, 1, torch.Generator().manual_seed(0))
    one = StageInput(payload=payload, position=0, cache=stage.new_cache(1), n_logits=int(stage.is_last))
    return timed(partial(stage.run, [one]))


def compile_if_idle(stage: Stage, compiling: Compiling) -> str:
    """`compile_stage`, unless sessions would have to wait for it; why it wasn't done, empty if it was."""
    if stage.is_encoder:
        return "an encoder takes no tokens one by one"
    if compiling.n_sessions:
        return (
            f"{compiling.n_sessions} sessions were running here when it was loaded, and compiling would have "
            "stopped them, for up to a minute"
        )
    return compile_stage(stage, compiling.folder)


def compile_stage(stage: Stage, folder: Path) -> str:
    """Have the stage run single tokens by compiled code, kept in `folder`; why it doesn't, or nothing if it does.

    Takes seconds, or a minute if nothing is in the folder yet. Only a broken device is an error.
    """
    cuts = (partial(compile_pieces, folder=folder),)
    return _put_in_place(stage, record, cuts, TOLERANCES[stage.dtype], "stage_compiled")


def replay_stage(stage: Stage) -> str:
    """Have the stage run single tokens from a recording, with the same bits; why it doesn't, or nothing if it does.

    Takes a second or two. Only a broken device is an error. With int4 weights a step takes 0.68 to 0.74 of the CPU
    time (docs/benchmarks.md). If the shortened recording can't be made or gave other bits, the whole one is tried.
    """
    return _put_in_place(stage, record, (as_short_as_can_be, as_they_are), 0.0, "stage_recorded")


def replay_batches(stage: Stage, sizes: range) -> str:
    """Have the stage run single tokens of so many sessions from one recording; `sizes` is one of `size_ranges`.

    Else as `replay_stage`.
    """

    def recorded(stage: Stage) -> Recording:
        few = record(stage, sizes[0])
        return between(few, few if len(sizes) == 1 else record(stage, sizes[-1]))

    return _put_in_place(stage, recorded, (as_they_are,), 0.0, "batches_recorded")


def _put_in_place(
    stage: Stage, make: Callable[[Stage], Recording], cuts: Sequence[_Cut], tolerance: float, event: str
) -> str:
    """By the first of these cuts of what is made that gives what is right; why none does."""
    because, started = "", time.perf_counter()
    # graphs are cycles that hold weights: frozen by the next load they would hold them for good
    with garbage_collected_at_end():
        try:
            recording = make(stage)
        except UncompilableError as exc:
            return str(exc)
        except Exception as exc:  # of model code that torch can't follow: the stage works without
            if is_device_broken(exc):
                raise
            return _told(stage, event, exc)
        for cut in cuts:
            try:
                because = _tried(stage, recording, cut, tolerance, (event, started))
            except Exception as exc:  # of torch's compiler: likewise
                if is_device_broken(exc):
                    raise
                because = _told(stage, event, exc)
            if not because:
                break
        del recording
    return because


def _told(stage: Stage, event: str, exc: Exception) -> str:
    """What to say of it; the log has the rest."""
    how = log.warning if event == "stage_compiled" else log.info  # only that was asked for
    how(
        "recording_failed",
        blocks=str(stage.blocks),
        wanted=event,
        error=f"{type(exc).__name__}: {exc}"[:_MOST_WORDS],
    )
    inner = getattr(exc, "inner_exception", exc)
    if type(inner).__name__ == "InvalidCxxCompiler":  # whose module is loaded by compiling only: it takes memory
        return "it needs a C++ compiler and there is none: install g++ or clang, and start the worker again"
    words = " ".join(str(exc).split())[:_MOST_WORDS]
    return f"torch can't compile it ({type(exc).__name__}: {words})"


def _tried(stage: Stage, recording: Recording, cut: _Cut, tolerance: float, told: tuple[str, float]) -> str:
    """`told`: what the log calls it, and when it began, in seconds."""
    event, started = told
    pieces = cut(recording)
    step = RecordedStep(stage, recording, pieces)
    tried = {step.sizes[place] for place in (0, len(step.sizes) // 2, -1)}
    differs_by = max(_difference(stage, step, n_sessions) for n_sessions in tried)
    if not differs_by <= tolerance:
        return f"the compiled result differs by {differs_by:.1g} from the right one"
    stage.decode_by(step, step.sizes)
    log.info(
        event,
        blocks=str(stage.blocks),
        n_sessions=step.sizes[-1],
        n_pieces=len(pieces.pieces),
        n_kinds=pieces.n_kinds,
        differs_by=differs_by,
        seconds=round(time.perf_counter() - started, 2),
    )
    return ""


@torch.inference_mode()
def _difference(stage: Stage, step: RecordedStep, n_sessions: int) -> float:
    """The largest, of a few tokens of so many sessions after prompts, from what the stage gives unrecorded."""
    generator = torch.Generator().manual_seed(0)
    n_before = [_PROMPT_TOKENS] if n_sessions == 1 else [1 + number % 3 for number in range(n_sessions)]
    prompts = [trial_payload(stage, n_tokens, generator) for n_tokens in n_before]
    n_tried = _TRIED_TOKENS if n_sessions == 1 else _TRIED_TOGETHER
    n_logits = int(stage.is_last)
    begun = [_begun(stage, prompts, n_tried) for _ in range(2)]
    differences: list[float] = []
    for _ in range(n_tried):
        payloads = [trial_payload(stage, 1, generator) for _ in prompts]
        ours, theirs = (
            [
                StageInput(payload=payload, position=cache.length, cache=cache, n_logits=n_logits)
                for payload, cache in zip(payloads, caches, strict=True)
            ]
            for caches in begun
        )
        right = [stage.run_alone(theirs[0])] if n_sessions == 1 else stage.run_together(theirs)
        differences += map(difference, step(ours), right)
    return max(differences)


def _begun(stage: Stage, prompts: Sequence[torch.Tensor], n_more: int) -> list[KVCache]:
    """Caches of sessions that have run these prompts, and have room for more."""
    caches = [stage.new_cache(len(prompt) + n_more) for prompt in prompts]
    stage.run(
        [StageInput(payload=prompt, position=0, cache=cache) for prompt, cache in zip(prompts, caches, strict=True)]
    )
    return caches
