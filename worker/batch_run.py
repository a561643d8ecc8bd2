"""Run the steps of a batch: each is checked on its own, then those of one stage go through it in one forward.

What is wrong with one step fails that step alone. When a forward fails, nobody can tell whose fault it was, so its
steps run again one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import structlog
import torch

from protocol.errors import (
    BrigadeError,
    ContextExceededError,
    InternalError,
    OverloadedError,
    ProtocolError,
    StaleEpochError,
)
from worker.kv_cache import KVCache
from worker.likeliest import likeliest_tokens
from worker.loading import lacks_memory
from worker.measures import Measures
from worker.model_fault import check_handed_on
from worker.sampling import Sampler
from worker.stage import Stage, StageInput
from worker.steps import SampledToken, SessionSpec, StepInput, StepOutput

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class CoreSession:
    """A session as the engine's thread has it."""

    spec: SessionSpec
    stage: Stage
    cache: KVCache
    sampler: Sampler | None
    n_drafts: int = 0
    """How many of the last positions are guesses, which the next step may replace."""

    def go_back_to(self, position: int) -> None:
        """Make `position` the next one."""
        self.cache.truncate(position)
        self.n_drafts = 0


@dataclass(frozen=True, slots=True)
class CheckedStep:
    """A step that its session can take now. `index`: its place in the batch."""

    index: int
    step: StepInput
    session: CoreSession


def checked(index: int, step: StepInput, session: CoreSession) -> CheckedStep:
    """The step, with its session at the step's position.

    Raises:
        StaleEpochError: the position was taken already.
        ProtocolError: a gap, a payload that the stage can't take, or a token wanted where none can be sampled.
        ContextExceededError: more positions than the session reserved.
    """
    _check(step, session)
    session.go_back_to(step.position)
    return CheckedStep(index, step, session)


def run_steps(steps: Sequence[CheckedStep], measures: Measures) -> Iterator[tuple[int, StepOutput | BrigadeError]]:
    """Run steps of different sessions; each one's place in the batch, and its result or what went wrong with it."""
    groups: dict[int, list[CheckedStep]] = {}
    for one in steps:
        stage = one.session.stage
        is_alone = stage.batching.because or one.session.spec.wants_inputs
        groups.setdefault(-one.index - 1 if is_alone else id(stage), []).append(one)
    for group in groups.values():
        try:
            results = _run_together(group, measures)
        except Exception as exc:
            for one in group:
                one.session.cache.truncate(one.step.position)  # some blocks may have written, others not
            if is_device_broken(exc):
                raise
            if len(group) == 1:
                yield group[0].index, _step_error(exc, group[0])
                continue
            log.warning("batch_failed", n_steps=len(group), error=type(exc).__name__)
            for one in group:
                yield from run_steps([one], measures)
        else:
            yield from zip((one.index for one in group), results, strict=True)


def is_device_broken(exc: Exception) -> bool:
    """Whether nothing on this device can work any more; only a new process helps (a CUDA context doesn't heal)."""
    if isinstance(exc, torch.OutOfMemoryError):
        return False
    return isinstance(exc, torch.AcceleratorError) or (isinstance(exc, RuntimeError) and "CUDA error" in str(exc))


def _run_together(group: Sequence[CheckedStep], measures: Measures) -> list[StepOutput | BrigadeError]:
    started = time.perf_counter()
    stage = group[0].session.stage
    tensors = stage.run([_stage_input(one) for one in group])
    if stage.device.type != "cpu":
        torch.accelerator.synchronize(stage.device)  # or sampling would be what waits for the forward
    compute_s = time.perf_counter() - started
    likeliest = _likeliest(group, tensors)
    likeliest_s = (time.perf_counter() - started - compute_s) / max(1, len(likeliest))
    results = [
        _result(one, tensor, likeliest, n_together=len(group), compute_s=compute_s, likeliest_s=likeliest_s)
        for one, tensor in zip(group, tensors, strict=True)
    ]
    if not group[0].session.spec.wants_inputs:
        took_s = time.perf_counter() - started
        runs_end = stage.is_last and any(one.step.wants_sample for one in group)
        measures.note([one.step for one in group], took_s, n_blocks=len(stage.blocks), runs_end=runs_end)
        if len(group) == 1:
            measures.note_alone(group[0].session.spec.span, group[0].step, took_s, len(stage.blocks))
        else:
            measures.note_together(group[0].session.spec.span, [one.step for one in group])
    return results


def _stage_input(one: CheckedStep) -> StageInput:
    step, sampler = one.step, one.session.sampler
    n_logits = 1 + step.n_drafts if step.wants_sample else 0
    return StageInput(
        payload=step.payload,
        position=step.position,
        cache=one.session.cache,
        n_prompt=one.session.spec.n_prompt,
        n_logits=n_logits,
        wants_likeliest=sampler is not None and sampler.wants_likeliest,
        wants_inputs=one.session.spec.wants_inputs,
    )


@torch.inference_mode()
def _likeliest(group: Sequence[CheckedStep], tensors: Sequence[torch.Tensor]) -> dict[int, list[int | None]]:
    """For the rows of each step that wants nothing but them, by its place in the batch; found all at once."""
    wanting = {
        one.index: logits
        for one, logits in zip(group, tensors, strict=True)
        if one.step.wants_sample and one.session.sampler is not None and one.session.sampler.wants_likeliest
    }
    found = iter(likeliest_tokens(list(wanting.values())))
    return {index: list(islice(found, len(logits))) for index, logits in wanting.items()}


def _result(
    one: CheckedStep,
    tensor: torch.Tensor,
    likeliest: dict[int, list[int | None]],
    *,
    n_together: int,
    compute_s: float,
    likeliest_s: float,
) -> StepOutput | BrigadeError:
    step, session = one.step, one.session
    hidden: torch.Tensor | None = None
    tokens: tuple[SampledToken, ...] = ()
    sampling_s = 0.0
    try:
        if step.wants_sample:
            assert session.sampler is not None
            began = time.perf_counter()
            tokens = _sampled(tensor, step, session.sampler, likeliest.get(one.index))
            sampling_s = time.perf_counter() - began + (likeliest_s if one.index in likeliest else 0.0)
        elif session.spec.hands_on or not session.stage.is_last:
            # whoever keeps it must not keep the others' rows
            hidden = tensor.cpu() if n_together == 1 else tensor.cpu().clone()
            check_handed_on(hidden, session.stage.blocks, step.position)
    except BrigadeError as exc:
        session.cache.truncate(step.position)
        return exc
    session.n_drafts = step.n_drafts
    return StepOutput(
        session_id=step.session_id,
        position=step.position,
        hidden=hidden,
        tokens=tokens,
        compute_s=compute_s,
        sampling_s=sampling_s,
    )


def _sampled(
    logits: torch.Tensor, step: StepInput, sampler: Sampler, likeliest: Sequence[int | None] | None
) -> tuple[SampledToken, ...]:
    """The drafts that hold, and the token after them; `logits` (1 + n_drafts, vocab_size) of the last positions."""
    first = step.position + step.n_tokens - step.n_drafts
    choices = sampler.verify(logits, first, step.drafts, likeliest)
    return tuple(
        SampledToken(
            token_id=choice.token_id,
            position=position,
            is_stop=sampler.is_stop(choice.token_id),
            logprob=choice.logprob,
            top_logprobs=choice.top_logprobs,
        )
        for position, choice in enumerate(choices, first)
    )


def _check(step: StepInput, session: CoreSession) -> None:
    """Refuse what the stage can't take; on a GPU a wrong token id would kill the whole context."""
    at = step.position if session.spec.wants_inputs and not session.stage.is_encoder else session.cache.length
    if step.position < at - session.n_drafts:
        raise StaleEpochError(f"position {step.position} was taken already; the session is at {at}")
    if step.position > at:
        raise ProtocolError(f"position {step.position} leaves a gap; the session is at {at}")
    stage, payload = session.stage, step.payload
    shape = (step.n_tokens,) if stage.is_first else (step.n_tokens, stage.hidden_size)
    if step.n_tokens <= step.n_drafts or payload.shape != shape or payload.is_floating_point() == stage.is_first:
        raise ProtocolError(
            f"a payload {tuple(payload.shape)} of {payload.dtype}; blocks {stage.blocks} take {shape}"
        )
    end = step.position + step.n_tokens
    if end > session.spec.n_positions:
        raise ContextExceededError(f"position {end} of a session that reserved {session.spec.n_positions}")
    if stage.is_first and not 0 <= int(payload.min()) <= int(payload.max()) < stage.vocab_size:
        raise ProtocolError(f"a token id outside of the vocabulary of {stage.vocab_size}")
    if step.wants_sample and (not stage.is_last or stage.is_encoder or session.sampler is None):
        raise ProtocolError(f"session {step.session_id} was asked for a token where it has no sampler")


def _step_error(exc: Exception, one: CheckedStep) -> BrigadeError:
    if isinstance(exc, BrigadeError):
        return exc
    step, blocks = one.step, one.session.stage.blocks
    if lacks_memory(exc):
        return OverloadedError(f"no memory left for {step.n_tokens} tokens in blocks {blocks}")
    log.error("step_failed", session_id=step.session_id, blocks=str(blocks), exc_info=exc)
    return InternalError(f"the step at position {step.position} failed in blocks {blocks}")
