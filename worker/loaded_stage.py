"""A stage, loaded from its files and made ready for the device that it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from protocol.ids import BlockRange
from protocol.messages import Quantization
from worker.column_linear import use_columns
from worker.cut import free_embedding, is_bare
from worker.encoder_stage import EncoderStage
from worker.gguf_file import GgufFile
from worker.huge_pages import collapse_to_huge_pages, move_to_huge_pages
from worker.kernels import say_if_missing
from worker.layout import lay_out_for_decode
from worker.loading import load_config, load_cut_model
from worker.packed_linear import pack_linear_layers
from worker.quantised_cache import QuantisedCache
from worker.row_norm import use_row_norms
from worker.stage import Stage
from worker.widened_linear import widen_linear_layers


def load_stage(
    config_source: Path | GgufFile,
    files: Sequence[Path | GgufFile],
    blocks: BlockRange,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    quantised: QuantisedCache | None = None,
) -> Stage:
    """Load `blocks` from their files (see `worker.loading`); the config is in a folder, or in a GGUF.

    Raises:
        UntrustedFileError: config or weights aren't what they should be.
        StorageError: a file can't be read.
    """
    config = load_config(config_source)
    n_blocks = config.num_hidden_layers
    model = load_cut_model(
        config, files, blocks, dtype=dtype, device=device, quantization=quantization, quantised=quantised
    )
    if blocks.start > 0:
        free_embedding(model)
    say_if_missing()
    pack_linear_layers(model)
    widen_linear_layers(model)
    lay_out_for_decode(model)
    use_columns(model)
    use_row_norms(model)
    move_to_huge_pages(model)
    kind = EncoderStage if is_bare(model) else Stage
    stage = kind(model, blocks, n_blocks=n_blocks, dtype=dtype, device=device)
    collapse_to_huge_pages(piece for linear in stage.packed_linears() for piece in linear.weights.memory)
    return stage
