"""Run a recorded step: its pieces one after the other, and at each gap the sessions' own attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from worker.attention import SESSIONS, BatchCache, attending_apart, implementation_of
from worker.compiled_pieces import Pieces
from worker.compiled_recording import Recording, masks_at
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput


class RecordedStep:
    """What `Stage.run` does with one new token of one session, or of each of several."""

    def __init__(self, stage: Stage, recording: Recording, pieces: Pieces) -> None:
        """`pieces` are the recording's, whose graph isn't kept: graphs are cycles with weights."""
        self.sizes = recording.sizes
        self._device = stage.device
        self._dtype = torch.long if stage.is_first else stage.dtype
        self._own_attention = implementation_of(stage.configs[0])
        self._is_together = recording.implementation == SESSIONS
        self._masks = partial(masks_at, recording.implementation, recording.mask_rules)
        self._pieces = pieces
        fills = [recording.filler(gap) for gap in recording.gaps]
        self._filled = list(zip(pieces.pieces[:-1], fills, pieces.holes, strict=True))

    def __call__(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Of each session hidden states (1, hidden_size), or logits (1, vocab_size) of a last stage."""
        positions = torch.tensor([one.position for one in inputs], device=self._device)
        if not self._is_together:
            return [self._rows(inputs[0].payload, [positions], inputs[0].position, inputs[0].cache)]
        batch = BatchCache(
            [one.cache for one in inputs], [1] * len(inputs), implementation=self._own_attention, joins_keys=False
        )
        payload = torch.cat([one.payload for one in inputs])
        with attending_apart(batch, ()):
            return list(self._rows(payload, [positions, len(inputs)], 0, batch).split_with_sizes([1] * len(inputs)))

    def _rows(
        self,
        payload: torch.Tensor,
        others: Sequence[torch.Tensor | int],
        mask_position: int,
        cache: KVCache | BatchCache,
    ) -> torch.Tensor:
        """What comes out for all sessions; `others` are the values after the payload."""
        pieces = self._pieces
        values: list[Any] = [0] * pieces.n_values
        values[: 1 + len(others)] = payload.to(self._device, self._dtype).contiguous(), *others
        masks = self._masks(mask_position)
        for piece, fill, hole in self._filled:
            given = piece.run(*[values[number] for number in piece.takes], *piece.weights)
            for number, one_given in zip(piece.gives, given, strict=True):
                values[number] = one_given
            query, key, value = hole.states
            states = values[query], values[key], values[value]
            computed = [values[number] for number in hole.computed]
            values[hole.gives] = fill(cache, masks, states, computed).contiguous()
        last = pieces.pieces[-1]
        given = last.run(*[values[number] for number in last.takes], *last.weights)
        return given[last.gives.index(pieces.result)]
