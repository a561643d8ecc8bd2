"""What fewer bits cost: perplexity of SmolLM2-135M on a text, by what its weights are held in, against float32.

    python -m benchmarks.perplexity [--text FILE] [--threads N]

The first rows hold the values of the GGUF file (Q4_1, the embedding Q8_0) in float32 and bfloat16, with key-value
caches of that precision and of others, and its codes as they are. For the rows after them the values are taken as
full-precision weights and rounded anew to 8 and 4 bits, as a worker does with a model from safetensors. The text is
benchmarks/alice.txt, the beginning of Alice's Adventures in Wonderland (Lewis Carroll, 1865).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoTokenizer

from coordinator.file_store import FileStore
from coordinator.packing.pack import pack_model
from demo.local_cluster import smollm2_gguf
from protocol.ids import BlockRange
from protocol.manifest import Manifest
from protocol.messages import KvPrecision, Quantization
from worker.file_tensors import file_tensors
from worker.gguf_blocks import with_encodings
from worker.loaded_stage import load_stage
from worker.stage import Stage, StageInput

TEXT = Path(__file__).parent / "alice.txt"
WINDOW = 512
"""Tokens that are seen at once; each window begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """What the weights are held in. `is_rounded_anew`: from values as full-precision weights, not from codes."""

    name: str
    dtype: torch.dtype
    quantization: Quantization | None = None
    is_rounded_anew: bool = False
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in, if not in what is computed in."""


ARRANGEMENTS = (
    Arrangement(name="float32", dtype=torch.float32),
    Arrangement(name="float32, caches in bfloat16", dtype=torch.float32, kv_precision="bfloat16"),
    Arrangement(name="float32, caches in int8", dtype=torch.float32, kv_precision="int8"),
    Arrangement(name="bfloat16", dtype=torch.bfloat16),
    Arrangement(name="bfloat16, caches in int8", dtype=torch.bfloat16, kv_precision="int8"),
    Arrangement(name="int4, the file's own codes", dtype=torch.bfloat16, quantization="int4"),
    Arrangement(name="int8, rounded anew", dtype=torch.bfloat16, quantization="int8", is_rounded_anew=True),
    Arrangement(name="int4, rounded anew", dtype=torch.bfloat16, quantization="int4", is_rounded_anew=True),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table("weights", "perplexity", "to float32", "weights, MB")
    with tempfile.TemporaryDirectory(prefix="brigade-perplexity-") as scratch:
        model = PackedModel(Path(scratch))
        ids = model.token_ids(arguments.text.read_text())
        reference = 0.0
        for arrangement in ARRANGEMENTS:
            stage = model.stage(arrangement)
            found = perplexity(stage, ids, arrangement.kv_precision)
            reference = reference or found
            table.add_row(
                arrangement.name,
                f"{found:.2f}",
                f"{found / reference - 1:+.1%}",
                f"{stage.n_weight_bytes() / 1e6:.0f}",
            )
    Console().print(f"{len(ids)} tokens, in windows of {WINDOW}", table)


class PackedModel:
    """SmolLM2 as `coord model add` packs it, and once more with its values instead of codes."""

    def __init__(self, scratch: Path) -> None:
        store = FileStore(scratch / "store")
        self._manifest: Manifest = pack_model(str(smollm2_gguf()), store, lambda *_: None).manifest
        self._config = scratch / "config"
        self._config.mkdir()
        for file in self._manifest.auxiliary:
            (self._config / file.name).write_bytes(store.path(file.sha256).read_bytes())
        blocks = BlockRange(0, self._manifest.n_blocks)
        self._files = tuple(store.path(file.sha256) for file in self._manifest.weight_files(blocks))
        self._values = tuple(_as_values(path, scratch / f"{path.name}.values") for path in self._files)

    def token_ids(self, text: str) -> list[int]:
        """The text's token ids."""
        ids: list[int] = AutoTokenizer.from_pretrained(self._config)(text)["input_ids"]
        return ids

    def stage(self, arrangement: Arrangement) -> Stage:
        """The whole model as one stage."""
        return load_stage(
            self._config,
            self._values if arrangement.is_rounded_anew else self._files,
            BlockRange(0, self._manifest.n_blocks),
            dtype=arrangement.dtype,
            device=torch.device("cpu"),
            quantization=arrangement.quantization,
        )


def _as_values(source: Path, target: Path) -> Path:
    """The file with float32 values in place of codes, as an older coordinator wrote it."""
    with safe_open(source, framework="pt") as file:
        tensors = with_encodings(file_tensors(file, source.name))
        save_file({name: tensor[...].contiguous() for name, tensor in tensors.items()}, target)
    return target


def perplexity(stage: Stage, ids: list[int], kv_precision: KvPrecision | None = None) -> float:
    """Of all tokens but the first of each window."""
    n_predicted, loss = 0, 0.0
    for start in range(0, len(ids) - 1, WINDOW):
        window = torch.tensor(ids[start : start + WINDOW], dtype=torch.int32)
        one = StageInput(
            payload=window, position=0, cache=stage.new_cache(WINDOW, kv_precision), n_logits=len(window)
        )
        logits = stage.run([one])[0][:-1].float()
        loss += float(torch.nn.functional.cross_entropy(logits, window[1:].long(), reduction="sum"))
        n_predicted += len(window) - 1
    return math.exp(loss / n_predicted)


if __name__ == "__main__":
    main()
