"""What the engine's thread holds: loaded spans, sessions with their caches, and how a step runs.

Nothing here knows of threads or of the event loop; everything is called by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import structlog
import torch

from protocol.errors import (
    BrigadeError,
    ConflictError,
    ContextExceededError,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    StaleEpochError,
    UntrustedFileError,
)
from protocol.ids import SessionId
from protocol.messages import SamplingParams
from worker.kv_cache import KVCache
from worker.sampling import Sampler
from worker.stage import Stage, load_stage
from worker.steps import LoadedSpan, LoadRequest, SampledToken, SessionSpec, SpanKey, StepInput, StepOutput

log = structlog.get_logger(__name__)

_AVERAGE_WEIGHT = 0.1
"""Of a new measurement in the running averages: the last twenty or so steps count."""


@dataclass(slots=True)
class _Session:
    spec: SessionSpec
    stage: Stage
    cache: KVCache
    sampler: Sampler | None


@dataclass(slots=True)
class _Average:
    value: float = 0.0

    def add(self, measured: float) -> None:
        self.value += (measured - self.value) * (_AVERAGE_WEIGHT if self.value else 1.0)


@dataclass(slots=True)
class EngineCore:
    """Spans and sessions on one device."""

    device: torch.device
    spans: dict[SpanKey, tuple[Stage, LoadedSpan]] = field(default_factory=dict)
    sessions: dict[SessionId, _Session] = field(default_factory=dict)
    decode_s_per_block: _Average = field(default_factory=_Average)
    prefill_s_per_token_per_block: _Average = field(default_factory=_Average)
    n_positions_run: int = 0

    def load(self, request: LoadRequest) -> LoadedSpan:
        """Load a span, or give it if it is loaded.

        Raises:
            UntrustedFileError: config or weights aren't what they should be.
            StorageError: a file can't be read.
            OverloadedError: the device has too little memory.
        """
        if request.key in self.spans:
            return self.spans[request.key][1]
        started = time.perf_counter()
        dtype: torch.dtype = getattr(torch, request.key.precision)
        blocks = request.key.blocks
        try:
            stage = load_stage(request.config_folder, request.files, blocks, dtype=dtype, device=self.device)
            kv_bytes_by_block = stage.kv_bytes_by_block()
        except (MemoryError, torch.OutOfMemoryError) as exc:
            raise OverloadedError(f"blocks {blocks} don't fit into the memory of {self.device}") from exc
        except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as exc:
            if is_device_broken(exc):
                raise
            raise UntrustedFileError(f"blocks {blocks} of this architecture can't be run: {exc}") from exc
        loaded = LoadedSpan(
            key=request.key,
            n_blocks=stage.n_blocks,
            n_weight_bytes=stage.n_weight_bytes(),
            kv_bytes_by_block=kv_bytes_by_block,
            hidden_bytes=stage.hidden_size * stage.dtype.itemsize,
            load_s=time.perf_counter() - started,
        )
        self.spans[request.key] = (stage, loaded)
        return loaded

    def unload(self, key: SpanKey) -> None:
        """Drop a span; nothing happens if it isn't loaded.

        Raises:
            ConflictError: sessions still use it.
        """
        n_open = sum(session.spec.span == key for session in self.sessions.values())
        if n_open:
            raise ConflictError(f"{n_open} sessions still run on blocks {key.blocks}; close them first")
        self.spans.pop(key, None)

    def open(self, spec: SessionSpec) -> None:
        """Begin a session whose memory is reserved.

        Raises:
            NotFoundError: its span isn't loaded.
            InvalidRequestError: its blocks aren't a part of the span.
            InternalError: the span can't be cut to them.
        """
        if spec.span not in self.spans:
            raise NotFoundError(f"blocks {spec.span.blocks} are not loaded on this worker")
        stage = _view(self.spans[spec.span][0], spec)
        sampler = Sampler(spec.sampling, spec.prompt_token_ids) if spec.sampling is not None else None
        self.sessions[spec.session_id] = _Session(spec, stage, stage.new_cache(spec.n_positions), sampler)

    def adopt(self, spec: SessionSpec, parked_id: SessionId) -> int:
        """Begin a session with the cache that another, on the same blocks, has left; the positions in it.

        Raises:
            NotFoundError: there is no such other session.
        """
        parked = self._session(parked_id)
        del self.sessions[parked_id]
        self.sessions[spec.session_id] = _Session(spec, parked.stage, parked.cache, None)
        return parked.cache.length

    def attach_sampler(
        self, session_id: SessionId, sampling: SamplingParams, prompt_token_ids: Sequence[int]
    ) -> None:
        """Say how a session samples, and the tokens before the first that it does.

        Raises:
            NotFoundError: no such session.
            InvalidRequestError: a token id that the model doesn't have.
        """
        session = self._session(session_id)
        if max(prompt_token_ids, default=0) >= session.stage.vocab_size:
            raise InvalidRequestError(
                f"a token id of the prompt is outside of the vocabulary of {session.stage.vocab_size}"
            )
        session.sampler = Sampler(sampling, prompt_token_ids)

    def truncate(self, session_id: SessionId, position: int) -> None:
        """Roll back: `position` is the next that the session takes.

        Raises:
            NotFoundError: no such session.
            ProtocolError: the session hasn't come that far.
        """
        cache = self._session(session_id).cache
        if not 0 <= position <= cache.length:
            raise ProtocolError(f"can't go back to position {position}: the session is at {cache.length}")
        cache.truncate(position)

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its memory; nothing happens if there is none."""
        self.sessions.pop(session_id, None)

    def run_batch(self, steps: Sequence[StepInput]) -> Iterator[StepOutput | BrigadeError]:
        """Run steps of different sessions; for each, in order, its result or what went wrong with it alone."""
        for step in steps:
            try:
                yield self._run(step)
            except BrigadeError as exc:
                yield exc

    def _run(self, step: StepInput) -> StepOutput:
        session = self._session(step.session_id)
        _check(step, session)
        started = time.perf_counter()
        try:
            hidden, token = self._compute(step, session)
        except Exception as exc:
            session.cache.truncate(step.position)  # some blocks may have written, others not
            if isinstance(exc, BrigadeError) or is_device_broken(exc):
                raise
            raise _step_error(exc, step, session) from exc
        compute_s = time.perf_counter() - started
        self.n_positions_run += step.n_tokens
        per_block = compute_s / len(session.stage.blocks)
        if step.n_tokens == 1:
            self.decode_s_per_block.add(per_block)
        else:
            self.prefill_s_per_token_per_block.add(per_block / step.n_tokens)
        return StepOutput(
            session_id=step.session_id, position=step.position, hidden=hidden, token=token, compute_s=compute_s
        )

    def _compute(self, step: StepInput, session: _Session) -> tuple[torch.Tensor | None, SampledToken | None]:
        stage = session.stage
        if not step.wants_sample:
            hidden = stage.hidden(step.payload, step.position, session.cache)
            return (None if stage.is_last else hidden.cpu()), None
        if not stage.is_last or session.sampler is None:
            raise ProtocolError(f"session {step.session_id} was asked for a token where it has no sampler")
        logits = stage.logits(step.payload, step.position, session.cache)
        position = step.position + step.n_tokens
        token_id = session.sampler.sample(logits, position)
        is_stop = session.sampler.is_stop(token_id)
        return None, SampledToken(token_id=token_id, position=position, is_stop=is_stop)

    def _session(self, session_id: SessionId) -> _Session:
        if session_id not in self.sessions:
            raise NotFoundError(f"session {session_id} is not open on this worker")
        return self.sessions[session_id]


def is_device_broken(exc: Exception) -> bool:
    """Whether nothing on this device can work any more; only a new process helps (a CUDA context doesn't heal)."""
    if isinstance(exc, torch.OutOfMemoryError):
        return False
    return isinstance(exc, torch.AcceleratorError) or (isinstance(exc, RuntimeError) and "CUDA error" in str(exc))


def _view(stage: Stage, spec: SessionSpec) -> Stage:
    try:
        return stage.view(spec.blocks)
    except BrigadeError:
        raise
    except Exception as exc:  # the library's own: it must end this session, not the engine
        if is_device_broken(exc):
            raise
        log.exception("view_failed", session_id=spec.session_id, blocks=str(spec.blocks))
        raise InternalError(f"blocks {spec.blocks} can't be run apart from {spec.span.blocks}") from exc


def _check(step: StepInput, session: _Session) -> None:
    """Refuse what the stage can't take; on a GPU a wrong token id would kill the whole context."""
    at = session.cache.length
    if step.position < at:
        raise StaleEpochError(f"position {step.position} was taken already; the session is at {at}")
    if step.position > at:
        raise ProtocolError(f"position {step.position} leaves a gap; the session is at {at}")
    stage, payload = session.stage, step.payload
    shape = (step.n_tokens,) if stage.is_first else (step.n_tokens, stage.hidden_size)
    if step.n_tokens < 1 or payload.shape != shape or payload.is_floating_point() == stage.is_first:
        raise ProtocolError(
            f"a payload {tuple(payload.shape)} of {payload.dtype}; blocks {stage.blocks} take {shape}"
        )
    end = step.position + step.n_tokens
    if end > session.spec.n_positions:
        raise ContextExceededError(f"position {end} of a session that reserved {session.spec.n_positions}")
    if stage.is_first and not 0 <= int(payload.min()) <= int(payload.max()) < stage.vocab_size:
        raise ProtocolError(f"a token id outside of the vocabulary of {stage.vocab_size}")


def _step_error(exc: Exception, step: StepInput, session: _Session) -> BrigadeError:
    if isinstance(exc, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(exc):
        return OverloadedError(f"no memory left for {step.n_tokens} tokens in blocks {session.stage.blocks}")
    log.error("step_failed", session_id=step.session_id, blocks=str(session.stage.blocks), exc_info=exc)
    return InternalError(f"the step at position {step.position} failed in blocks {session.stage.blocks}")
