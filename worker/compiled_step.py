"""Run a recorded step: its pieces one after the other, and at each gap the sessions' own attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
import torch

from worker.attention import SESSIONS, BatchCache, attending_apart, implementation_of
from worker.batch_run import is_device_broken
from worker.compiled_pieces import Pieces
from worker.compiled_recording import Recording, masks_at
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput
from worker.static_step import Places, Sessions, StaticStep, can_stay

log = structlog.get_logger(__name__)


class RecordedStep:
    """What `Stage.run` does with one new token of one session, or of each of several."""

    def __init__(self, stage: Stage, recording: Recording, pieces: Pieces) -> None:
        """`pieces` are the recording's, whose graph isn't kept: graphs are cycles with weights."""
        self.sizes = recording.sizes
        self._device = stage.device
        self._dtype = torch.long if stage.is_first else stage.dtype
        self._row_shape = () if stage.is_first else (stage.hidden_size,)
        self._n_blocks = len(stage.blocks)
        self._own_attention = implementation_of(stage.configs[0])
        self._is_together = recording.implementation == SESSIONS
        self._masks = partial(masks_at, recording.implementation, recording.mask_rules)
        self._pieces = pieces
        self._gaps = [(gap, recording.filler(gap)) for gap in recording.gaps]
        self._filled = list(zip(pieces.pieces[:-1], [fill for _, fill in self._gaps], pieces.holes, strict=True))
        self._places = Places(self.sizes[-1])
        self._static: dict[int, StaticStep | None] = {}
        """By numbers of sessions, each made when it first comes; None if that can't be."""

    def __call__(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Of each session hidden states (1, hidden_size), or logits (1, vocab_size) of a last stage."""
        n_sessions = len(inputs)
        if n_sessions not in self._static:
            self._static[n_sessions] = self._made_static(n_sessions)
        static = self._static[n_sessions]
        positions = torch.tensor([one.position for one in inputs], device=self._device)
        payload = torch.cat([one.payload for one in inputs]) if n_sessions > 1 else inputs[0].payload
        payload = payload.to(self._device, self._dtype).contiguous()
        with self._sessions([one.cache for one in inputs], inputs[0].position) as run:
            if static is None:
                rows = self._rows(self._given(payload, positions), run)
            else:
                rows = static(payload, positions, run)
        return [rows] if n_sessions == 1 else list(rows.split_with_sizes([1] * n_sessions))

    def _made_static(self, n_sessions: int) -> StaticStep | None:
        """With tensors that stay where they are, on the CPU; tried with sessions of its own."""
        if self._device.type != "cpu" or not can_stay(self._pieces):
            return None
        payload = torch.zeros((n_sessions, *self._row_shape), dtype=self._dtype)
        given = self._given(payload, torch.zeros(n_sessions, dtype=torch.long))
        try:
            with self._sessions([KVCache(self._n_blocks, 1) for _ in range(n_sessions)], 0) as run:
                return StaticStep(self._pieces, self._gaps, self._places, given, run)
        except Exception as exc:  # of an operation, or for want of memory: it runs without
            if is_device_broken(exc):
                raise
            log.info("step_not_static", n_sessions=n_sessions, error=f"{type(exc).__name__}: {exc}"[:200])
            self._places = Places(self.sizes[-1])  # what others use they hold themselves
            return None

    def _given(self, payload: torch.Tensor, positions: torch.Tensor) -> list[Any]:
        return [payload, positions, len(positions)] if self._is_together else [payload, positions]

    @contextmanager
    def _sessions(self, caches: Sequence[KVCache], position: int) -> Iterator[Sessions]:
        """`position`: of the first one."""
        if not self._is_together:
            yield Sessions(caches=caches, cache=caches[0], masks=self._masks(position))
            return
        batch = BatchCache(caches, [1] * len(caches), implementation=self._own_attention, joins_keys=False)
        with attending_apart(batch, ()):
            yield Sessions(caches=caches, cache=batch, masks=self._masks(0))

    def _rows(self, given: Sequence[Any], run: Sessions) -> torch.Tensor:
        """What comes out for all sessions; `given` are a payload, positions, and perhaps the number of sessions."""
        pieces = self._pieces
        values: list[Any] = [0] * pieces.n_values
        values[: len(given)] = given
        for piece, fill, hole in self._filled:
            made = piece.run(*[values[number] for number in piece.takes], *piece.weights)
            for number, one_made in zip(piece.gives, made, strict=True):
                values[number] = one_made
            query, key, value = hole.states
            states = values[query], values[key], values[value]
            computed = [values[number] for number in hole.computed]
            values[hole.gives] = fill(run.cache, run.masks, states, computed).contiguous()
        last = pieces.pieces[-1]
        made = last.run(*[values[number] for number in last.takes], *last.weights)
        result: torch.Tensor = made[last.gives.index(pieces.result)]
        return result
