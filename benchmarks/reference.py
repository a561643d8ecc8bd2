"""transformers beside us in the same process: the same weights, greedy, as many threads as are said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.generation.streamers import BaseStreamer

from protocol.model_files.quick_gguf import make_gguf_quick


class Times(BaseStreamer):  # type: ignore[misc] # transformers ships no types for it
    """When each token of transformers' generate came."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Any) -> None:  # noqa: ARG002 - transformers' signature
        """Called with the prompt first, then with each token."""
        self.at.append(time.perf_counter())

    def end(self) -> None:
        """Called once, at the end."""

    def tokens_per_s(self) -> float:
        """After the first token."""
        return (len(self.at) - 2) / (self.at[-1] - self.at[1])


def reference_model(source: Path, precision: str) -> Any:
    """The model of a GGUF file or a folder of safetensors."""
    transformers.utils.logging.disable_progress_bar()
    make_gguf_quick()
    dtype = getattr(torch, precision)
    if source.suffix == ".gguf":
        return transformers.AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=dtype
        ).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval()


def unquantized(source: Path, folder: Path) -> Path:
    """The model as a folder of float32 safetensors, written into `folder`; a folder is what it is. Blocks."""
    if source.suffix != ".gguf":
        return source
    read = reference_model(source, "float32")
    config = transformers.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # one that may be saved
    plain.load_state_dict(read.state_dict())
    plain.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
    return folder


def vocab_size(source: Path) -> int:
    """How many token ids the model of `source` has."""
    if source.suffix == ".gguf":
        config = transformers.AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    else:
        config = transformers.AutoConfig.from_pretrained(source)
    return int(config.vocab_size)


@torch.inference_mode()
def reference_decode(model: Any, prompt: list[int], n_tokens: int) -> tuple[list[int], float]:
    """Greedy `generate` with one thread and no early end: the new ids, and tokens per second after the first."""
    torch.set_num_threads(1)
    ids = torch.tensor([prompt])
    times = Times()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=n_tokens,
        min_new_tokens=n_tokens,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        streamer=times,
    )
    return [int(token_id) for token_id in out[0, len(prompt) :]], times.tokens_per_s()


@torch.inference_mode()
def reference_prefill_s(model: Any, prompt: list[int], n_threads: int) -> float:
    """Seconds of one pass over the prompt, logits of the last position."""
    torch.set_num_threads(n_threads)
    ids = torch.tensor([prompt])
    began = time.perf_counter()
    model(ids, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - began


def weight_bytes(model: Any, start: int, end: int) -> int:
    """Bytes of a worker's weights in bfloat16: its blocks, and the embedding or head if it holds one."""
    layers = model.model.layers
    n_parameters = sum(p.numel() for layer in layers[start:end] for p in layer.parameters())
    if start == 0 or end == len(layers):  # tied or not, a worker at one end needs one such matrix
        n_parameters += model.get_input_embeddings().weight.numel()
    return 2 * n_parameters
