"""How much memory packing a model takes: a sharded model of sparse files, larger than the memory it may use.

    python benchmarks/packing_memory.py --gigabytes 6

The weights are zeros that take no room on disk; the store's copies do. Prints peak resident memory before and after
packing. Needs the `packing` extra, and about the model's size of free disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from coordinator.file_store import FileStore
from coordinator.packing import pack_model
from coordinator.packing.safetensors_format import build_header
from protocol.model_files.tensors import TensorInfo

HIDDEN = 4096
VOCABULARY = 32_000
N_BLOCKS = 16


def main() -> None:
    """Make the model, pack it, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the model")
    parser.add_argument("--folder", type=Path, default=None, help="where to work (a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="brigade-packing-") as scratch:
        n_bytes = write_sparse_model(Path(scratch) / "model", int(options.gigabytes * 1e9))
        before = peak_mb()
        n_calls = 0

        def count(_step: str, _n_done: int, _n_total: int) -> None:
            nonlocal n_calls
            n_calls += 1

        start = time.monotonic()
        store = FileStore(Path(scratch) / "store")
        packed = pack_model(str(Path(scratch) / "model"), store, count, allow_no_tokenizer=True)
        seconds = time.monotonic() - start
        largest = max(file.size_bytes for file in packed.manifest.all_files())
        print(f"model                  {n_bytes / 1e9:10.2f} GB in {N_BLOCKS} blocks")
        print(f"largest packed file    {largest / 1e6:10.1f} MB")
        print(f"stored                 {store.total_size() / 1e9:10.2f} GB (equal blocks are stored once)")
        print(f"peak before packing    {before:10.0f} MB (torch and transformers imported)")
        print(f"peak after packing     {peak_mb():10.0f} MB")
        print(f"time                   {seconds:10.1f} s, {n_bytes / 1e6 / seconds:.0f} MB/s")
        print(f"progress calls         {n_calls:10}")


def write_sparse_model(folder: Path, n_bytes: int) -> int:
    """A Llama-like model of about `n_bytes`, one shard a block; gives its true size."""
    folder.mkdir()
    ends = [("model.embed_tokens.weight", VOCABULARY), ("lm_head.weight", VOCABULARY), ("model.norm.weight", 1)]
    rows = (n_bytes // 2 // HIDDEN - 2 * VOCABULARY) // N_BLOCKS
    shards = [[TensorInfo(name=name, dtype="BF16", shape=(n_rows, HIDDEN)) for name, n_rows in ends]]
    # A row count of its own makes every block's file another one, so that none is stored for free.
    shards += [
        [TensorInfo(name=f"model.layers.{index}.mlp.up_proj.weight", dtype="BF16", shape=(rows + index, HIDDEN))]
        for index in range(N_BLOCKS)
    ]
    weight_map = {}
    total = 0
    for number, infos in enumerate(shards):
        name = f"model-{number:05d}.safetensors"
        header = build_header(infos)
        size = sum(info.n_bytes for info in infos)
        with (folder / name).open("wb") as file:
            file.write(header)
            file.truncate(len(header) + size)
        weight_map |= {info.name: name for info in infos}
        total += size
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_attention_heads": 32,
        "num_hidden_layers": N_BLOCKS,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return total


def peak_mb() -> float:
    """Most memory that this process has had resident, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


if __name__ == "__main__":
    main()
