"""Which file each tensor goes into: pure, by name and shape alone, with no table of models.

block-0000.safetensors ...   one a transformer block
embedding.safetensors        the input token embedding, when it is tied to the head
before.safetensors           else what the first stage needs besides its blocks
after.safetensors            final norm and head
shared.safetensors           what can't be told by its name: needed at both ends
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from protocol.errors import InvalidRequestError, UntrustedFileError
from protocol.model_files.tensors import TensorInfo

_LAYER = re.compile(r"(?P<list>(?:^|.*?\.)(?:layers|layer|blocks|block|h))\.(?P<index>\d{1,6})\.")
_HEAD = re.compile(r"embed_out|lm_head|project_out|(?:^|[._])(?:output|head|output_layer)(?:[._]|$)")
_EMBEDDING = re.compile(r"embed|(?:^|\.)(?:wte|wpe)\.|project_in")
_NORM = re.compile(r"norm|ln_f")
_EITHER = re.compile(r"(?:^|\.)(?:embedding_norm|layernorm_embedding)\.")
"""The first norm in some models, the last in others (LFM2, BigBird-Pegasus)."""
_POSITION = re.compile(r"position|wpe|token_type")
_EXTRA_PREDICTION = re.compile(r"(?:^|\.)(?:mtp|nextn)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Tensor names of each file, sorted. `left_out` are those that a causal model doesn't use."""

    blocks: tuple[tuple[str, ...], ...]
    embedding: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]
    shared: tuple[str, ...]
    left_out: tuple[str, ...]

    def files(self) -> dict[str, tuple[str, ...]]:
        """File name to tensor names, in the order in which they are written; empty files left out."""
        files = {"embedding.safetensors": self.embedding, "before.safetensors": self.before}
        files |= {block_file(index): names for index, names in enumerate(self.blocks)}
        files |= {"after.safetensors": self.after, "shared.safetensors": self.shared}
        return {name: tensors for name, tensors in files.items() if tensors}

    def stored_heads(self, tensors: Mapping[str, TensorInfo]) -> tuple[str, ...]:
        """Heads stored beside a tied embedding of the same shape: a copy of it, or a sign that it isn't tied."""
        shapes = {tensors[name].shape for name in self.embedding}
        return tuple(name for name in self.after if _HEAD.search(name) and tensors[name].shape in shapes)


def block_file(index: int) -> str:
    """Name of the file of block `index`."""
    return f"block-{index:04d}.safetensors"


def plan_layout(
    tensors: Mapping[str, TensorInfo],
    *,
    n_blocks: int,
    vocab_size: int,
    ties_embeddings: bool,
    has_head: bool = True,
) -> Layout:
    """Sort the tensors of a model of `n_blocks` into files. An encoder has no head to tie its embedding to.

    Raises:
        UntrustedFileError: no layers, a layer missing, several lists of layers or no input embedding.
        InvalidRequestError: something beside the layers that each of them needs.
    """
    by_list, others = _by_layer_list(tensors)
    main = _main_list(by_list, n_blocks)
    blocks: list[list[str]] = [[] for _ in range(n_blocks)]
    left_out = [name for key in by_list if key != main for names in by_list[key].values() for name in names]
    for index, names in by_list[main].items():
        (blocks[index] if index < n_blocks else left_out).extend(names)
    left_out += [name for name in others if _EXTRA_PREDICTION.search(name)]
    ends = {name: _end(name) for name in others if not _EXTRA_PREDICTION.search(name)}
    before = [name for name, end in ends.items() if end == "before"]
    after = [name for name, end in ends.items() if end == "after"]
    embedding = [name for name in before if _is_token_embedding(tensors[name], vocab_size)]
    if not embedding:
        raise UntrustedFileError(
            f"no tensor of {vocab_size} rows (the vocabulary) looks like the input embedding among "
            f"{', '.join(sorted(others)[:8]) or 'none'} outside the layers: such a model can't be cut; "
            "take another one"
        )
    has_own_head = any(_HEAD.search(name) and len(tensors[name].shape) == 2 for name in after)
    if not has_head:
        _check_encoder(main, others, embedding)
    if not has_head or (not ties_embeddings and has_own_head):
        embedding = []
    return Layout(
        blocks=tuple(tuple(sorted(names)) for names in blocks),
        embedding=tuple(sorted(embedding)),
        before=tuple(sorted(set(before) - set(embedding))),
        after=tuple(sorted(after)),
        shared=tuple(sorted(name for name, end in ends.items() if end == "both")),
        left_out=tuple(sorted(left_out)),
    )


def _check_encoder(main: str, others: Sequence[str], embedding: Sequence[str]) -> None:
    """Refuse an encoder with a table beside its layers that each of them looks into (relative positions).

    It lies with the list of layers, where the token embedding doesn't.
    """
    parent = main.rpartition(".")[0] + "."
    beside = [name for name in others if name.startswith(parent) and not _NORM.search(name.lower())]
    if parent != "." and beside and not all(name.startswith(parent) for name in embedding):
        raise InvalidRequestError(
            f"every layer of the model needs {', '.join(sorted(beside)[:3])}, which isn't a part of any: such a "
            "model can't be cut into blocks; use another encoder (BERT, RoBERTa, DistilBERT, ModernBERT, XLM-R)"
        )


def _by_layer_list(tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, dict[int, list[str]]], list[str]]:
    """Tensors of each list of layers by index, and those of none."""
    by_list: dict[str, dict[int, list[str]]] = {}
    others: list[str] = []
    for name in tensors:
        if match := _LAYER.match(name):
            by_list.setdefault(match["list"], {}).setdefault(int(match["index"]), []).append(name)
        else:
            others.append(name)
    return by_list, others


def _main_list(by_list: Mapping[str, Mapping[int, list[str]]], n_blocks: int) -> str:
    candidates = [key for key in by_list if not _EXTRA_PREDICTION.search(key)]
    if len(candidates) != 1:
        raise UntrustedFileError(
            f"expected one list of {n_blocks} layers among the tensors, found {len(candidates)}"
            f"{': ' if candidates else ''}{', '.join(sorted(candidates)[:4])}. A model that has several (for "
            "images, for sound) or none can't be cut into blocks; take one of text alone"
        )
    found = by_list[candidates[0]]
    if missing := [index for index in range(n_blocks) if index not in found]:
        raise UntrustedFileError(
            f"the config says {n_blocks} layers; {len(missing)} of them have no tensors, the first is layer "
            f"{missing[0]}: files are missing, or the config belongs to another model"
        )
    return candidates[0]


def _end(name: str) -> str:
    """`before`, `after` or `both`: which end of the model a tensor outside the layers is for."""
    if _EITHER.search(name):
        return "both"
    if _HEAD.search(name):
        return "after"
    if _EMBEDDING.search(name):
        return "before"
    if _NORM.search(name):
        return "after"
    return "both"


def _is_token_embedding(tensor: TensorInfo, vocab_size: int) -> bool:
    """Padded vocabularies have more rows than the config says, never fewer."""
    return len(tensor.shape) == 2 and tensor.shape[0] >= vocab_size and not _POSITION.search(tensor.name)
