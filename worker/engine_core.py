"""What the engine's thread holds: loaded spans, sessions with their caches, and how a step runs.

Nothing here knows of threads or of the event loop; everything is called by one thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
import torch

from protocol.errors import (
    BrigadeError,
    ConflictError,
    InternalError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    UntrustedFileError,
)
from protocol.ids import SessionId
from protocol.messages import KvPrecision, SamplingParams
from worker.batch_run import CoreSession, checked, is_device_broken, run_steps
from worker.batching_trial import settle_batching
from worker.compiled import compile_if_idle
from worker.draft_model import DraftModel, DraftModelInfo, DraftModelRequest, load_draft_model
from worker.grammar import Grammar, TokenizerSource, why_unconstrained
from worker.heap import give_back_free_memory
from worker.loaded_stage import load_stage
from worker.loading import lacks_memory
from worker.measures import Measures
from worker.prompt_attention import settle_prompt_attention
from worker.quantised_cache import QuantisedCache
from worker.sampling import Sampler, check_token_ids
from worker.screening import NO_SCREENING, Screening
from worker.screening_trial import settle_screening
from worker.spare_time import SpareTime
from worker.stage import Stage
from worker.steps import Drafting, LoadedSpan, LoadRequest, SessionSpec, SpanKey, StepInput, StepOutput

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class EngineCore:
    """Spans and sessions on one device."""

    device: torch.device
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in; None: what is computed in."""
    quantised: QuantisedCache | None = None
    """Where codes are kept that had to be made; files go by their hashes then."""
    spans: dict[SpanKey, tuple[Stage, LoadedSpan]] = field(default_factory=dict)
    sessions: dict[SessionId, CoreSession] = field(default_factory=dict)
    measures: Measures = field(default_factory=Measures)
    draft_model: DraftModel | None = None
    spare_time: SpareTime = field(default_factory=SpareTime)

    def load_draft_model(self, request: DraftModelRequest) -> DraftModelInfo:
        """Load a model that guesses what the spans' models will say.

        Raises:
            ConfigError: it can't be used.
        """
        self.draft_model = load_draft_model(request, self.device)
        return self.draft_model.info

    def next_draft(self, session_id: SessionId, position: int, token_ids: Sequence[int], n_positions: int) -> int:
        """What the draft model takes to come after these tokens (see `DraftModel.next_token`).

        Raises:
            NotFoundError: the session was closed meanwhile; nobody would ever forget what is begun for it now.
            OverloadedError, InternalError: it can't say.
        """
        self._session(session_id)
        if self.draft_model is None:
            raise InternalError("this worker has no draft model")
        return self.draft_model.next_token(session_id, position, token_ids, n_positions)

    def forget_drafts(self, session_id: SessionId) -> None:
        """Free what the draft model keeps of a session."""
        if self.draft_model is not None:
            self.draft_model.forget(session_id)

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
        stage, kv_bytes_by_block, screening = self._loaded_stage(request)
        uncompiled_because = "" if request.compiling is None else compile_if_idle(stage, request.compiling)
        loaded = LoadedSpan(
            key=request.key,
            n_blocks=stage.n_blocks,
            n_weight_bytes=stage.n_weight_bytes(),
            kv_precision=self.kv_precision or request.key.precision,
            kv_bytes_by_block=kv_bytes_by_block,
            hidden_bytes=stage.hidden_size * stage.dtype.itemsize,
            load_s=time.perf_counter() - started,
            tokenizer=TokenizerSource(folder=request.config_folder, vocab_size=stage.vocab_size),
            unconstrained_because=why_unconstrained() if stage.is_last else "",
            unbatched_because=stage.batching.because,
            unpacked_because=stage.unpacked_because,
            screening=screening,
            drafting=self._drafting(stage, request.context_length),
            is_compiled=request.compiling is not None and not uncompiled_because,
            uncompiled_because=uncompiled_because,
            is_encoder=stage.is_encoder,
            working_bytes=stage.working_bytes,
            context_length=request.context_length,
            text_lengths=stage.rotary.lengths,
        )
        self.spans[request.key] = (stage, loaded)
        self.measures.begin_anew()
        self.spare_time.stage_loaded(stage, loaded, request.context_length)
        give_back_free_memory()
        return loaded

    def rest(self) -> bool:
        """Do some of what serves later steps, for a time when nobody waits; whether there is more of it."""
        return self.spare_time.do_some(self.measures)

    def _loaded_stage(self, request: LoadRequest) -> tuple[Stage, tuple[int, ...], Screening]:
        """The span, the bytes that a position takes in each block's cache, and whether its head screens."""
        blocks = request.key.blocks
        try:
            stage = load_stage(
                request.config_folder,
                request.files,
                blocks,
                dtype=getattr(torch, request.key.precision),
                device=self.device,
                quantization=request.key.quantization,
                quantised=self.quantised,
            )
            kv_bytes_by_block = stage.kv_bytes_by_block(self.kv_precision)
            settle_batching(stage)
            settle_prompt_attention(stage.device, stage.dtype)
            screening = NO_SCREENING if request.compiling else settle_screening(stage, request.cache_bytes)
        except (MemoryError, RuntimeError, ValueError, TypeError, AttributeError, LookupError) as exc:
            if is_device_broken(exc):
                raise
            if lacks_memory(exc):
                raise OverloadedError(f"blocks {blocks} don't fit into the memory of {self.device}") from exc
            raise UntrustedFileError(f"blocks {blocks} of this architecture can't be run: {exc}") from exc
        return stage, kv_bytes_by_block, screening

    def unload(self, key: SpanKey) -> None:
        """Drop a span; nothing happens if it isn't loaded.

        Raises:
            ConflictError: sessions still use it.
        """
        n_open = sum(session.spec.span == key for session in self.sessions.values())
        if n_open:
            raise ConflictError(f"sessions that still run on blocks {key.blocks}: {n_open}; close them first")
        self.spans.pop(key, None)
        self.spare_time.forget(key)
        self.measures.forget(key)

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
        cache = stage.new_cache(spec.n_positions, self.kv_precision)
        self.sessions[spec.session_id] = CoreSession(spec, stage, cache, sampler)

    def adopt(self, spec: SessionSpec, parked_id: SessionId) -> int:
        """Begin a session with the very cache that another, on the same blocks, has left; the positions in it.

        Raises:
            NotFoundError: there is no such other session.
            OverloadedError: the device has no memory for as many positions as the new one reserved.
        """
        parked = self._session(parked_id)
        del self.sessions[parked_id]
        self.sessions[spec.session_id] = CoreSession(spec, parked.stage, parked.cache, None)
        with _memory_errors(f"for a session of {spec.n_positions} positions"):
            parked.cache.resize(spec.n_positions)
        return parked.cache.length

    def park(self, session_id: SessionId, n_positions: int) -> None:
        """Keep the first positions of a session that is over, and no memory beyond them."""
        session = self._session(session_id)
        self.forget_drafts(session_id)
        try:
            with _memory_errors("for what is kept of a session"):
                session.cache.resize(n_positions)
        except OverloadedError as exc:  # making it smaller takes memory for a moment
            log.warning("session_not_kept", session_id=session_id, reason=exc.message)
            session.cache = session.stage.new_cache(n_positions, self.kv_precision)

    def open_copy(self, spec: SessionSpec, parked_id: SessionId, n_positions: int) -> int:
        """Begin a session with a copy of the first positions that another, on the same blocks, has left; how many.

        Raises:
            NotFoundError: there is no such other session.
            OverloadedError: the device has no memory for the copy.
        """
        parked = self._session(parked_id)
        cache = parked.stage.new_cache(spec.n_positions, self.kv_precision)
        n_positions = min(n_positions, parked.cache.length)
        with _memory_errors(f"to copy {n_positions} positions of a cache"):
            cache.copy_from(parked.cache, n_positions)
        self.sessions[spec.session_id] = CoreSession(spec, parked.stage, cache, None)
        return n_positions

    def attach_sampler(
        self, session_id: SessionId, sampling: SamplingParams, prompt: Sequence[int], grammar: Grammar | None = None
    ) -> None:
        """Say how a session samples, and the tokens before the first that it does; `grammar`: of its constraint.

        Raises:
            NotFoundError: no such session.
            InvalidRequestError: a token id that the model doesn't have.
        """
        session = self._session(session_id)
        check_token_ids(sampling, prompt, session.stage.vocab_size)
        session.sampler = Sampler(sampling, prompt, grammar)

    def truncate(self, session_id: SessionId, position: int) -> None:
        """Roll back: `position` is the next that the session takes.

        Raises:
            NotFoundError: no such session.
            ProtocolError: the session hasn't come that far.
        """
        session = self._session(session_id)
        if not 0 <= position <= session.cache.length:
            raise ProtocolError(f"can't go back to position {position}: the session is at {session.cache.length}")
        session.go_back_to(position)

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its memory; nothing happens if there is none."""
        self.sessions.pop(session_id, None)
        self.forget_drafts(session_id)

    def run_batch(self, steps: Sequence[StepInput]) -> Iterator[tuple[int, StepOutput | BrigadeError]]:
        """Run steps of different sessions; each one's place in `steps`, and its result or what is wrong with it."""
        ready = []
        for index, step in enumerate(steps):
            try:
                ready.append(checked(index, step, self._session(step.session_id)))
            except BrigadeError as exc:
                yield index, exc
        yield from run_steps(ready, self.measures)

    def _drafting(self, stage: Stage, context_length: int) -> Drafting | None:
        return None if self.draft_model is None else self.draft_model.info.beside(stage, context_length)

    def _session(self, session_id: SessionId) -> CoreSession:
        if session_id not in self.sessions:
            raise NotFoundError(f"session {session_id} is not open on this worker")
        return self.sessions[session_id]


@contextmanager
def _memory_errors(purpose: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as exc:
        if is_device_broken(exc):
            raise
        raise OverloadedError(f"no memory left {purpose}") from exc


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
