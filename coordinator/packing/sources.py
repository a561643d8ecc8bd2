"""What SOURCE in `coord model add NAME SOURCE` means, and fetching a model from the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of whichever library the Hub's client uses; not in its __all__
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from protocol.disk import storage_error
from protocol.errors import (
    BrigadeError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    StorageError,
    UnreachableError,
)

_HUB_ID = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,200}))?")
_HUB_FILES = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja", "vocab.json", "merges.txt",
    "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "added_tokens.json",
    "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
"""Weights, config and tokenizer, and how vectors are made; never pickles or code."""
_NOT_HUB_FILES = ("*/*.safetensors", "consolidated*.safetensors", "adapter_model*.safetensors")
"""Other formats of the same weights, and whatever is in folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSource:
    """A folder with config.json and safetensors; links in it may lead into `link_root`."""

    folder: Path
    link_root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFileSource:
    """A GGUF file."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class HubSource:
    """A model on the Hub, at a branch, tag or commit (None: the main branch)."""

    model_id: str
    revision: str | None


def parse_source(source: str) -> FolderSource | GgufFileSource | HubSource:
    """What `source` names. A path that exists wins over a Hub id.

    Raises:
        InvalidRequestError: a file that is no GGUF, or no path and no id.
        NotFoundError: a path that doesn't exist.
    """
    path = Path(source).expanduser()
    if not source.strip() or "\0" in source:
        raise InvalidRequestError("the model's source is empty; name a folder, a .gguf file or a Hub id (org/name)")
    try:
        if path.is_dir():
            return FolderSource(folder=path.resolve(), link_root=path.resolve())
        if path.is_file():
            return _file_source(path)
    except OSError as exc:
        raise StorageError(f"{source[:200]} can't be read: {exc.strerror}") from exc
    match = _HUB_ID.fullmatch(source)
    if match is None or ".." in source or source.endswith((".gguf", ".safetensors")):
        raise NotFoundError(
            f"there is no folder or file {source[:200]!r}, and it isn't a Hub id (org/name or org/name@revision)"
        )
    return HubSource(model_id=match["id"], revision=match["revision"])


def _file_source(path: Path) -> GgufFileSource:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"GGUF" or path.suffix.lower() == ".gguf":
        return GgufFileSource(path=path.resolve())
    raise InvalidRequestError(
        f"{path} is not a GGUF file; for safetensors name the folder that config.json and the weights are in. "
        "Pickled weights (.bin, .pt) are never loaded"
    )


def fetch_from_hub(source: HubSource) -> FolderSource:
    """Download the model into the Hub's own cache, or find it there.

    Raises:
        UnreachableError: the Hub doesn't answer and the model isn't in the cache.
        NotFoundError: there is no such model or revision, or it is private.
        ForbiddenError: the model is gated.
        StorageError: the cache can't be written.
    """
    try:
        folder = Path(
            snapshot_download(
                source.model_id,
                revision=source.revision,
                allow_patterns=list(_HUB_FILES),
                ignore_patterns=list(_NOT_HUB_FILES),
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled) as exc:
        raise _hub_error(source, exc) from exc
    except (HTTPError, RevisionResolutionError, ConnectionError, TimeoutError) as exc:
        raise _unreachable(source) from exc
    except OSError as exc:
        cache = Path(exc.filename or "the Hub's cache")
        raise storage_error(cache, exc, instead="name another folder for what the Hub sends (HF_HOME)") from exc
    # A snapshot's files are links into the model's own blobs folder, beside snapshots/.
    return FolderSource(folder=folder, link_root=folder.parent.parent)


def _hub_error(source: HubSource, exc: Exception) -> BrigadeError:
    name = f"{source.model_id}{f'@{source.revision}' if source.revision else ''}"
    if isinstance(exc, GatedRepoError):  # a RepositoryNotFoundError too
        return ForbiddenError(
            f"{name} is gated: accept its terms on its page, then log in with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(exc, RevisionNotFoundError):
        return NotFoundError(f"{source.model_id} has no revision {source.revision!r}")
    if isinstance(exc, RepositoryNotFoundError):
        return NotFoundError(f"the Hub has no model {name}, or it is private and HF_TOKEN isn't set; check the id")
    if isinstance(exc, HFValidationError):
        return InvalidRequestError(f"{name} can't be a Hub id: {str(exc)[:200]}")
    if isinstance(exc, HfHubHTTPError) and exc.response is not None:
        return UnreachableError(f"the Hub answered {exc.response.status_code} for {name}; try again later")
    return _unreachable(source)


def _unreachable(source: HubSource) -> UnreachableError:
    return UnreachableError(
        f"the Hub can't be reached and {source.model_id} isn't in this machine's cache; check the connection "
        "(and HF_HUB_OFFLINE), or copy the model's folder here and name that"
    )
