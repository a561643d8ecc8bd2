from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import fx

from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from worker import compiled_pieces
from worker.batching_trial import settle_batching
from worker.compiled_recording import record


def test_blocks_that_are_alike_are_compiled_once(
    checkpoint: Callable[[str], TinyCheckpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[fx.GraphModule] = []

    def instead_of_torch(
        module: fx.GraphModule, _inputs: list[torch.Tensor], **_settings: object
    ) -> fx.GraphModule:
        compiled.append(module)
        return module

    monkeypatch.setattr(compiled_pieces, "standalone_compile", instead_of_torch)
    stage = checkpoint("llama").load(WHOLE)
    settle_batching(stage)
    pieces = compiled_pieces.compile_pieces(record(stage), tmp_path)
    assert len(pieces.pieces) == N_BLOCKS + 1
    assert len(compiled) == pieces.n_kinds == 3  # before the first attention, between two, after the last
    assert len({piece.run for piece in pieces.pieces[1:-1]}) == 1
    weights = [{id(weight) for weight in piece.weights} for piece in pieces.pieces[1:-1]]
    assert all(len(one) == len(other) and one != other for one, other in pairwise(weights))
