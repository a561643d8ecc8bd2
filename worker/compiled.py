"""Have a stage run one new token of one session from a recording, compiled or as it is.

Between its products a step of one token is hundreds of small operations, which cost more by being called one by one
than by what they do. A recording of them calls the very same ones, without the model's modules around them;
compiled, those between two products are one. Either is tried against the stage as it is, and isn't used if the
results differ.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
import torch

from protocol.background import garbage_collected_at_end
from worker.batch_run import is_device_broken
from worker.batching_trial import TOLERANCES, difference, trial_payload
from worker.compiled_pieces import Pieces, as_short_as_can_be, as_they_are, compile_pieces
from worker.compiled_recording import Recording, UncompilableError, masks_at, record
from worker.stage import Stage, StageInput
from worker.steps import Compiling

log = structlog.get_logger(__name__)

_PROMPT_TOKENS = 5
_TRIED_TOKENS = 6
_MOST_WORDS = 200
_Cut = Callable[[Recording], Pieces]


class RecordedStep:
    """What `Stage.run` does with one new token of one session."""

    def __init__(self, stage: Stage, recording: Recording, pieces: Pieces) -> None:
        self._device = stage.device
        self._dtype = torch.long if stage.is_first else stage.dtype
        self._masks = partial(
            masks_at, recording.implementation, recording.mask_rules
        )  # graphs are cycles with weights
        self._pieces = pieces
        fills = [recording.filler(gap) for gap in recording.gaps]
        self._filled = list(zip(pieces.pieces[:-1], fills, pieces.holes, strict=True))

    def __call__(self, one: StageInput) -> torch.Tensor:
        """Hidden states (1, hidden_size), or logits (1, vocab_size) of a last stage."""
        pieces = self._pieces
        values: list[torch.Tensor] = [torch.empty(0)] * pieces.n_values
        values[0] = one.payload.to(self._device, self._dtype).contiguous()
        values[1] = torch.tensor([one.position], device=self._device)
        masks = self._masks(one.position)
        for piece, fill, hole in self._filled:
            given = piece.run(*[values[number] for number in piece.takes], *piece.weights)
            for number, one_given in zip(piece.gives, given, strict=True):
                values[number] = one_given
            query, key, value = hole.states
            states = values[query], values[key], values[value]
            computed = [values[number] for number in hole.computed]
            values[hole.gives] = fill(one.cache, masks, states, computed).contiguous()
        last = pieces.pieces[-1]
        given = last.run(*[values[number] for number in last.takes], *last.weights)
        return given[last.gives.index(pieces.result)]


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
    return _put_in_place(stage, cuts, TOLERANCES[stage.dtype], "stage_compiled")


def replay_stage(stage: Stage) -> str:
    """Have the stage run single tokens from a recording, with the same bits; why it doesn't, or nothing if it does.

    Takes a second or two. Only a broken device is an error. With int4 weights a step takes 0.68 to 0.74 of the CPU
    time (docs/benchmarks.md). If the shortened recording can't be made or gave other bits, the whole one is tried.
    """
    return _put_in_place(stage, (as_short_as_can_be, as_they_are), 0.0, "stage_recorded")


def _put_in_place(stage: Stage, cuts: Sequence[_Cut], tolerance: float, event: str) -> str:
    """By the first of these cuts that gives what is right; why none does."""
    because, started = "", time.perf_counter()
    # graphs are cycles that hold weights: frozen by the next load they would hold them for good
    with garbage_collected_at_end():
        try:
            recording = record(stage)
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
    log.warning("recording_failed", blocks=str(stage.blocks), wanted=event, exc_info=exc)
    words = " ".join(str(exc).split())[:_MOST_WORDS]
    return f"torch can't compile it ({type(exc).__name__}: {words})"


def _tried(stage: Stage, recording: Recording, cut: _Cut, tolerance: float, told: tuple[str, float]) -> str:
    """`told`: what the log calls it, and when it began, in seconds."""
    event, started = told
    pieces = cut(recording)
    step = RecordedStep(stage, recording, pieces)
    differs_by = _difference(stage, step)
    if not differs_by <= tolerance:
        return f"the compiled result differs by {differs_by:.1g} from the right one"
    stage.decode_by(step)
    log.info(
        event,
        blocks=str(stage.blocks),
        n_pieces=len(pieces.pieces),
        n_kinds=pieces.n_kinds,
        differs_by=differs_by,
        seconds=round(time.perf_counter() - started, 2),
    )
    return ""


@torch.inference_mode()
def _difference(stage: Stage, step: RecordedStep) -> float:
    """The largest, of a few tokens after a prompt, from what the stage gives unrecorded."""
    generator = torch.Generator().manual_seed(0)
    caches = [stage.new_cache(_PROMPT_TOKENS + _TRIED_TOKENS) for _ in range(2)]
    prompt = trial_payload(stage, _PROMPT_TOKENS, generator)
    for cache in caches:
        stage.run([StageInput(payload=prompt, position=0, cache=cache)])
    differences = []
    for position in range(_PROMPT_TOKENS, _PROMPT_TOKENS + _TRIED_TOKENS):
        payload = trial_payload(stage, 1, generator)
        one, other = (
            StageInput(payload=payload, position=position, cache=cache, n_logits=int(stage.is_last))
            for cache in caches
        )
        differences.append(difference(step(one), stage.run_alone(other)))
    return max(differences)
