"""Have a stage run one new token of one session from a recording, compiled or as it is.

Between its products a step of one token is hundreds of small operations, which cost more by being called one by one
than by what they do. A recording of them calls the very same ones, without the model's modules around them;
compiled, those between two products are one. Either is tried against the stage as it is, and isn't used if the
results differ.
"""

from __future__ import annotations

import time
from pathlib import Path

import structlog
import torch

from worker.batch_run import is_device_broken
from worker.batching_trial import TOLERANCES, difference, trial_payload
from worker.compiled_pieces import Pieces, as_they_are, compile_pieces
from worker.compiled_recording import Recording, UncompilableError, record
from worker.stage import Stage, StageInput
from worker.steps import Compiling

log = structlog.get_logger(__name__)

_PROMPT_TOKENS = 5
_TRIED_TOKENS = 6
_MOST_WORDS = 200


class RecordedStep:
    """What `Stage.run` does with one new token of one session."""

    def __init__(self, stage: Stage, recording: Recording, pieces: Pieces) -> None:
        self._device = stage.device
        self._dtype = torch.long if stage.is_first else stage.dtype
        self._recording = recording
        self._pieces = pieces
        self._filled = list(zip(pieces.pieces[:-1], recording.gaps, pieces.holes, strict=True))

    def __call__(self, one: StageInput) -> torch.Tensor:
        """Hidden states (1, hidden_size), or logits (1, vocab_size) of a last stage."""
        pieces, recording = self._pieces, self._recording
        values: list[torch.Tensor] = [torch.empty(0)] * pieces.n_values
        values[0] = one.payload.to(self._device, self._dtype).contiguous()
        values[1] = torch.tensor([one.position], device=self._device)
        masks = recording.masks(one.position)
        for piece, gap, hole in self._filled:
            given = piece.run(*[values[number] for number in piece.takes], *piece.weights)
            for number, one_given in zip(piece.gives, given, strict=True):
                values[number] = one_given
            query, key, value = hole.states
            states = values[query], values[key], values[value]
            computed = [values[number] for number in hole.computed]
            values[hole.gives] = recording.fill(gap, one.cache, masks, states, computed).contiguous()
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
    return _put_in_place(stage, folder, TOLERANCES[stage.dtype])


def replay_stage(stage: Stage) -> str:
    """Have the stage run single tokens from a recording, with the same bits; why it doesn't, or nothing if it does.

    Takes a second or two. Only a broken device is an error. With packed weights of fewer bits a step takes 0.85 to
    0.93 of the CPU time; with weights of 16 and 32 bits nothing is gained (docs/benchmarks.md).
    """
    return _put_in_place(stage, None, 0.0)


def _put_in_place(stage: Stage, folder: Path | None, tolerance: float) -> str:
    started = time.perf_counter()
    try:
        recording = record(stage)
        pieces = as_they_are(recording) if folder is None else compile_pieces(recording, folder)
        step = RecordedStep(stage, recording, pieces)
        differs_by = _difference(stage, step)
    except UncompilableError as exc:
        return str(exc)
    except Exception as exc:  # of torch's compiler, or of model code that it can't follow: the stage works without
        if is_device_broken(exc):
            raise
        log.warning("recording_failed", blocks=str(stage.blocks), compiles=folder is not None, exc_info=exc)
        words = " ".join(str(exc).split())[:_MOST_WORDS]
        return f"torch can't compile it ({type(exc).__name__}: {words})"
    if not differs_by <= tolerance:
        return f"the compiled result differs by {differs_by:.1g} from the right one"
    stage.decode_by(step)
    log.info(
        "stage_recorded" if folder is None else "stage_compiled",
        blocks=str(stage.blocks),
        n_pieces=len(pieces.pieces),
        n_compiled=pieces.n_compiled,
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
