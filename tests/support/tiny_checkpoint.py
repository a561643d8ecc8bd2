"""A tiny model on disk, split by block as a manifest would split it, and the whole model to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from transformers import PreTrainedModel

from protocol.ids import BlockRange, Revision
from tests.support.long_texts import LONG_CONFIGS
from tests.support.tiny_models import N_BLOCKS, TINY_CONFIGS, save_tiny_model, split_checkpoint
from worker.loaded_stage import load_stage
from worker.stage import Stage
from worker.steps import LoadRequest, SpanKey

CPU = torch.device("cpu")
WHOLE = BlockRange(0, N_BLOCKS)


@dataclass(frozen=True, slots=True)
class TinyCheckpoint:
    """`model` is the whole model in memory; `folder` has the config, the files one block each and the rest."""

    model: PreTrainedModel
    folder: Path
    block_files: tuple[Path, ...]
    rest_file: Path

    def files(self, blocks: BlockRange) -> tuple[Path, ...]:
        """What a stage of `blocks` loads."""
        owns_rest = blocks.start == 0 or blocks.end == N_BLOCKS
        return (*self.block_files[blocks.start : blocks.end], *([self.rest_file] if owns_rest else []))

    def load(self, blocks: BlockRange, dtype: torch.dtype = torch.float32) -> Stage:
        """A stage of `blocks`."""
        return load_stage(self.folder, self.files(blocks), blocks, dtype=dtype, device=CPU)

    def request(self, blocks: BlockRange) -> LoadRequest:
        """For an engine."""
        key = SpanKey(revision=Revision("r" * 64), blocks=blocks, precision="float32")
        return LoadRequest(key=key, config_folder=self.folder, files=self.files(blocks))

    @torch.inference_mode()
    def expected(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Final hidden states and logits of the whole model, (n_tokens, hidden) and (n_tokens, vocab)."""
        hidden = self.model.base_model(ids[None].long(), use_cache=False)[0][0]
        return hidden, self.model(ids[None].long(), use_cache=False).logits[0]

    @torch.inference_mode()
    def greedy(self, prompt: list[int], n_tokens: int) -> list[int]:
        """What the whole model says after `prompt`, without any cache."""
        ids = list(prompt)
        for _ in range(n_tokens):
            ids.append(int(self.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        return ids[len(prompt) :]


@cache
def _made(name: str, root: Path) -> TinyCheckpoint:
    folder = root / name
    model = save_tiny_model((TINY_CONFIGS | LONG_CONFIGS)[name](), folder)
    block_files, rest_file = split_checkpoint(folder, root / f"{name}-split")
    return TinyCheckpoint(model, folder, tuple(block_files), rest_file)


def tiny_checkpoint(name: str, root: Path) -> TinyCheckpoint:
    """The checkpoint of a tiny model by its short name, made under `root` when first asked for."""
    return _made(name, root)
