"""What a model is: its files by hash, its blocks in order, and the few numbers that placement needs.

The manifest's own SHA-256 is the model's revision. File names are labels for people; a file's identity is its
hash. This module knows no disk and no network.
"""

from __future__ import annotations

import hashlib
import re
from typing import Literal

import msgspec

from protocol.errors import UntrustedFileError
from protocol.ids import MAX_BLOCKS, BlockRange, FileHash, Revision

FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_AUXILIARY_FILE_BYTES = 64 * 2**20
"""Largest config or tokenizer file; the largest tokenizer.json published is under 40 MB."""

ModelKind = Literal["decoder", "encoder"]
"""A decoder is asked for the next token. An encoder's blocks see the whole text at once, in both directions: it has
no head and no caches, and is asked for hidden states alone."""

_HASH = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One content-addressed file. `n_parameters` is 0 for files that hold no weights."""

    name: str
    sha256: FileHash
    size_bytes: int
    n_parameters: int = 0

    def __post_init__(self) -> None:
        """Refuse what could leave a folder or lie about a size. ValueError: msgspec reports it as invalid."""
        if _FILE_NAME.fullmatch(self.name) is None:
            raise ValueError(f"{self.name[:80]!r} can't be a file's name in a manifest")
        if _HASH.fullmatch(self.sha256) is None:
            raise ValueError(f"{self.name}: the hash is not 64 lower-case hex digits")
        if not 0 <= self.size_bytes < 2**50 or not 0 <= self.n_parameters < 2**50:
            raise ValueError(f"{self.name}: a size of {self.size_bytes} bytes is out of range")


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model: what it is, and the files that its parts are in.

    `before` is needed by whoever runs the first block (embeddings), `after` by whoever runs the last (final norm,
    head); a tied embedding is the same file named in both. `auxiliary` are config and tokenizer files, all
    small. Weights keep the names and values of the checkpoint that they came from.
    """

    format_version: int
    architecture: str
    """Class name in transformers, of the causal model (`LlamaForCausalLM`) or an encoder's base (`BertModel`)."""
    model_type: str
    hidden_size: int
    vocab_size: int
    context_length: int
    """Most positions (prompt and answer together) that the model takes."""
    kv_elements_per_token: int
    """Elements (not bytes) of keys and values together that one token needs in one block; 0 of an encoder."""
    weights_dtype: str
    """dtype that most weights are stored in: torch's name without the prefix (`float32`, `bfloat16`), or GGUF's of
    an encoding (`q4_1`)."""
    is_chat: bool
    """Whether the model's tokenizer files hold a chat template."""
    blocks: tuple[ModelFile, ...]
    before: tuple[ModelFile, ...]
    after: tuple[ModelFile, ...]
    auxiliary: tuple[ModelFile, ...]
    kind: ModelKind = "decoder"

    def __post_init__(self) -> None:
        """Check what the types don't say. ValueError: msgspec reports it as invalid."""
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"manifest format {self.format_version} is not {FORMAT_VERSION}, the one this version reads"
            )
        if not 1 <= len(self.blocks) <= MAX_BLOCKS:
            raise ValueError(f"a model of {len(self.blocks)} blocks: 1 to {MAX_BLOCKS} can be run")
        least_kv = int(self.kind == "decoder")
        for what in ("hidden_size", "vocab_size", "context_length", "kv_elements_per_token"):
            least = least_kv if what == "kv_elements_per_token" else 1
            if not least <= getattr(self, what) < 2**31:
                raise ValueError(f"{what} = {getattr(self, what)} is out of range")
        names: dict[str, FileHash] = {}
        sizes: dict[FileHash, int] = {}
        for file in (*self.blocks, *self.before, *self.after, *self.auxiliary):
            if names.setdefault(file.name, file.sha256) != file.sha256:
                raise ValueError(f"{file.name} is named twice with different hashes")
            if sizes.setdefault(file.sha256, file.size_bytes) != file.size_bytes:
                raise ValueError(f"{file.name} shares its hash with a file of another size")
        for file in self.auxiliary:
            if file.size_bytes > MAX_AUXILIARY_FILE_BYTES:
                raise ValueError(f"{file.name}: {file.size_bytes} bytes, over {MAX_AUXILIARY_FILE_BYTES}")

    @property
    def n_blocks(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    def is_first(self, blocks: BlockRange) -> bool:
        """Whether a stage of these blocks embeds the tokens."""
        return blocks.start == 0

    def is_last(self, blocks: BlockRange) -> bool:
        """Whether a stage of these blocks has the final norm and, of a decoder, the head, and samples."""
        return blocks.end == self.n_blocks

    def weight_files(self, blocks: BlockRange) -> tuple[ModelFile, ...]:
        """The weight files that a stage of `blocks` loads, each once.

        Raises:
            ValueError: the range ends after the last block.
        """
        if blocks.end > self.n_blocks:
            raise ValueError(f"blocks {blocks} of a model that has {self.n_blocks}")
        files = list(self.blocks[blocks.start : blocks.end])
        if self.is_first(blocks):
            files.extend(self.before)
        if self.is_last(blocks):
            files.extend(self.after)
        return tuple({file.sha256: file for file in files}.values())

    def all_files(self) -> tuple[ModelFile, ...]:
        """Every file of the model, each once."""
        files = (*self.blocks, *self.before, *self.after, *self.auxiliary)
        return tuple({file.sha256: file for file in files}.values())

    def size_bytes(self) -> int:
        """Bytes of all files together, as stored."""
        return sum(file.size_bytes for file in self.all_files())


def encode_manifest(manifest: Manifest) -> bytes:
    """The one canonical form (JSON, keys in order) that the revision is taken over."""
    return msgspec.json.encode(manifest, order="sorted")


def revision_of(manifest_bytes: bytes) -> Revision:
    """SHA-256 of the manifest's bytes as they are."""
    return Revision(hashlib.sha256(manifest_bytes).hexdigest())


def decode_manifest(data: bytes, *, expected: Revision | None = None) -> Manifest:
    """Read a manifest and check it, against the revision too if one is expected.

    Raises:
        UntrustedFileError: not a manifest, not the expected one, or not in canonical form (two byte strings
            must never stand for one model); the message says what was wrong.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise UntrustedFileError(f"a manifest of {len(data)} bytes is over {MAX_MANIFEST_BYTES}")
    if expected is not None and revision_of(data) != expected:
        raise UntrustedFileError(f"the manifest's hash is not {expected}: it was altered or cut")
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise UntrustedFileError(f"not a model manifest: {exc}") from exc
    if encode_manifest(manifest) != data:
        raise UntrustedFileError("the manifest is not in canonical form: it was altered")
    return manifest
