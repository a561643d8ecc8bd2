"""What sentence-transformers' files beside a model say about its vectors, as one small file for clients.

modules.json                 what follows the model: pooling, a dense layer, norming
1_Pooling/config.json        how one vector is made of all positions'
sentence_bert_config.json    how long a text it was made for
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from coordinator.packing.safetensors_source import checked_path, read_small_file
from protocol.embedding_settings import EMBEDDING_FILE, EmbeddingSettings, Pooling
from protocol.errors import UntrustedFileError
from protocol.manifest import MAX_AUXILIARY_FILE_BYTES

MODULES_FILE = "modules.json"
LENGTH_FILE = "sentence_bert_config.json"
POOLING_FOLDER = "1_Pooling"
_CONFIG_FILE = "config.json"
_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}
"""By either way in which its versions have written it: a flag each, or one name."""
_HARMLESS = ("Transformer", "Pooling", "Normalize")
"""Modules that a client's own pooling and norming stand for."""


def embedding_files(folder: Path, *, link_root: Path) -> dict[str, bytes]:
    """`embedding.json` of the model in `folder`, by its name; nothing if the folder says nothing about vectors.

    Raises:
        UntrustedFileError: a file is too large, malformed or a link that leads elsewhere.
    """
    modules = _read(folder, MODULES_FILE, link_root) if (folder / MODULES_FILE).exists() else []
    length = _read(folder, LENGTH_FILE, link_root) if (folder / LENGTH_FILE).exists() else {}
    has_pooling = (folder / POOLING_FOLDER / _CONFIG_FILE).exists()
    if not (modules or length or has_pooling):
        return {}
    pooling: Pooling | None = None
    unsupported = [] if not isinstance(modules, list) else _others(modules)
    if has_pooling:
        settings = _read(folder / POOLING_FOLDER, _CONFIG_FILE, link_root)
        modes = _modes(settings)
        pooling = _POOLINGS.get(modes[0]) if len(modes) == 1 else None
        if pooling is None:
            unsupported.append(f"pooling by {' and '.join(modes) or 'nothing that is known'}")
    most = length.get("max_seq_length") if isinstance(length, dict) else None
    found = EmbeddingSettings(
        pooling=pooling,
        unsupported="; ".join(unsupported),
        max_tokens=most if isinstance(most, int) and most > 0 else None,
    )
    return {EMBEDDING_FILE: msgspec.json.encode(found, order="sorted") + b"\n"}


def _modes(settings: Any) -> list[str]:
    if not isinstance(settings, dict):
        return []
    named = settings.get("pooling_mode")
    if isinstance(named, str):
        return [named[:60]]
    return [key[:60] for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]


def _others(modules: list[Any]) -> list[str]:
    """What follows the model that isn't run."""
    types = (str(each.get("type", "")) for each in modules if isinstance(each, dict))
    names = (text.rpartition(".")[2][:60] for text in types)
    return [f"a further layer ({name})" for name in names if name not in _HARMLESS]


def _read(folder: Path, name: str, link_root: Path) -> Any:
    data = read_small_file(checked_path(folder, name, link_root=link_root), limit=MAX_AUXILIARY_FILE_BYTES)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise UntrustedFileError(f"{name} is not JSON: {exc}") from exc
