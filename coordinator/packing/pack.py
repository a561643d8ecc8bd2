"""A model source into content-addressed files and a manifest.

    source -> tensors (checked, unread) + config -> layout -> one file at a time into the store -> manifest

Tensors flow from the source into the store in pieces; what is in memory at once is a few pieces (of a GGUF: one
tensor). The same source always gives the same revision.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from coordinator.file_store import FileStore, StoredFile
from coordinator.hash_only_store import HashOnlyStore
from coordinator.packing.finite_check import FiniteCheck
from coordinator.packing.layout import Layout, block_file, plan_layout
from coordinator.packing.model_config import CONFIG_FILE
from coordinator.packing.opened_source import OpenedSource, open_source
from coordinator.packing.safetensors_format import build_header
from coordinator.packing.sources import HubSource, fetch_from_hub, parse_source
from coordinator.packing.tokenizer_files import (
    CHAT_TEMPLATE_FILE,
    TOKENIZER_FILE,
    canonical_json,
)
from protocol.errors import InvalidRequestError, StorageError, UntrustedFileError
from protocol.ids import FileHash, Revision
from protocol.manifest import (
    FORMAT_VERSION,
    MAX_MANIFEST_BYTES,
    Manifest,
    ModelFile,
    decode_manifest,
    encode_manifest,
    revision_of,
)
from protocol.model_files.tensors import TORCH_NAMES

Progress = Callable[[str, int, int], None]
"""Called with the step (`download`, `read`, `pack`), bytes done and bytes in all (0 if not known)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedModel:
    """A model whose files and manifest are in the store. `notes` are for the operator to read."""

    manifest: Manifest
    manifest_bytes: bytes
    revision: Revision
    notes: tuple[str, ...]


def pack_model(
    source: str, store: FileStore | HashOnlyStore, progress: Progress, *, allow_no_tokenizer: bool = False
) -> PackedModel:
    """Put the model that `source` names into `store`, manifest included.

    Blocks for as long as it takes. Holds the store's lock; take it yourself around this call and around recording
    the model, so that nobody removes the files as unreferenced in between. If it fails, the files that it stored
    are removed again; if the process dies, `FileStore.remove_unreferenced` does that.

    Raises:
        RequestError: the source can't be used; the message says why and what to use instead.
        StorageError: the disk is full or can't be used.
        UnreachableError: a Hub id, and the Hub doesn't answer.
        ConflictError: another process is adding or removing a model.
    """
    parsed = parse_source(source)
    with store.lock(), ExitStack() as stack:
        if isinstance(parsed, HubSource):
            progress("download", 0, 0)
            parsed = fetch_from_hub(parsed)
        progress("read", 0, 0)
        with _read_errors(source):
            opened = open_source(parsed, stack)
        if TOKENIZER_FILE not in opened.auxiliary and not allow_no_tokenizer:
            raise InvalidRequestError(
                f"{source} has no tokenizer (tokenizer.json, tokenizer.model or vocab.json); copy the tokenizer "
                "files of the model beside its weights"
            )
        with _read_errors(source):
            return _Packing(opened, store, progress).run(stack)


@contextmanager
def _read_errors(source: str) -> Iterator[None]:
    """Whatever the libraries that read the source leave untranslated."""
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{source} can't be read: {exc.strerror or exc}") from exc


class _Packing:
    """One run: writes the files, counts the bytes, and undoes it all if something fails."""

    def __init__(self, opened: OpenedSource, store: FileStore | HashOnlyStore, progress: Progress) -> None:
        self._opened = opened
        self._store = store
        self._progress = progress
        self._tensors = opened.used
        self._n_done = 0
        self._n_total = 0
        self._new: list[FileHash] = []
        self._notes = list(opened.notes)

    def run(self, stack: ExitStack) -> PackedModel:
        layout = self._settled_layout()
        files = layout.files()
        self._n_total = sum(self._tensors[name].n_bytes for names in files.values() for name in names)
        self._check_room()
        stack.enter_context(self._undone_on_failure())
        weights = {name: self._write_weights(name, tensors) for name, tensors in files.items()}
        auxiliary = tuple(self._write_small(name, data) for name, data in sorted(self._opened.auxiliary.items()))
        manifest = self._manifest(layout, weights, auxiliary)
        data = encode_manifest(manifest)
        if len(data) > MAX_MANIFEST_BYTES:
            raise UntrustedFileError(f"the manifest has {len(data)} bytes; at most {MAX_MANIFEST_BYTES} are read")
        decode_manifest(data)
        self._keep(self._store.put(data))
        notes = (*self._notes, *_left_out_note(layout))
        return PackedModel(manifest=manifest, manifest_bytes=data, revision=revision_of(data), notes=notes)

    def _settled_layout(self) -> Layout:
        """The layout, once it is known whether a head that is stored beside a tied embedding is a copy of it.

        As transformers does: a copy is left out, and embeddings that differ aren't tied, whatever the config says.
        """
        numbers = self._opened.numbers
        layout = self._layout(ties_embeddings=numbers.ties_embeddings)
        heads = layout.stored_heads(self._tensors) if numbers.ties_embeddings else ()
        if not heads:
            return layout
        digests = {self._digest(name) for name in (*heads, *layout.embedding)}
        if len(digests) == 1:
            self._notes.append(f"{', '.join(heads)} was left out: it is a copy of the tied embedding")
            return replace(layout, after=tuple(name for name in layout.after if name not in heads))
        self._notes.append("the head and the embedding differ: they are kept apart, although the config ties them")
        config = json.loads(self._opened.auxiliary[CONFIG_FILE]) | {"tie_word_embeddings": False}
        self._opened.auxiliary[CONFIG_FILE] = canonical_json(config)
        return self._layout(ties_embeddings=False)

    def _layout(self, *, ties_embeddings: bool) -> Layout:
        numbers = self._opened.numbers
        return plan_layout(
            self._tensors,
            n_blocks=numbers.n_blocks,
            vocab_size=numbers.vocab_size,
            ties_embeddings=ties_embeddings,
            has_head=numbers.kind == "decoder",
        )

    def _digest(self, name: str) -> bytes:
        digest = hashlib.sha256()
        for piece in self._opened.tensors.pieces(name):
            digest.update(piece)
        return digest.digest()

    def _check_room(self) -> None:
        """Fail before an hour of copying if the disk can't hold the model, even sharing what is stored already."""
        free = self._store.free_bytes()
        if self._n_total > free + self._store.total_size():
            raise StorageError(
                f"the model needs {self._n_total:,} bytes and {free:,} are free on the disk of {self._store.root}; "
                "make room, or choose another state folder"
            )

    def _write_weights(self, name: str, tensors: Sequence[str]) -> ModelFile:
        """Copy `tensors` into one safetensors file, in order; what isn't finite is refused."""
        infos = [self._tensors[tensor] for tensor in tensors]
        with self._store.writer() as writer:
            writer.write(build_header([info.stored for info in infos]))
            for info in infos:
                n_before = writer.size_bytes
                finite = FiniteCheck(info=info)
                for piece in self._opened.tensors.pieces(info.name):
                    finite.take(piece)
                    writer.write(piece)
                    self._n_done += len(piece)
                    self._progress("pack", self._n_done, self._n_total)
                assert writer.size_bytes - n_before == info.n_bytes
                finite.check()
            stored = self._keep(writer.commit())
        n_parameters = sum(info.n_elements for info in infos)
        return ModelFile(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes, n_parameters=n_parameters)

    def _write_small(self, name: str, data: bytes) -> ModelFile:
        stored = self._keep(self._store.put(data))
        return ModelFile(name=name, sha256=stored.sha256, size_bytes=stored.size_bytes)

    def _keep(self, stored: StoredFile) -> StoredFile:
        if stored.is_new:
            self._new.append(stored.sha256)
        return stored

    @contextmanager
    def _undone_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            for sha256 in self._new:
                self._store.remove(sha256)
            raise

    def _manifest(
        self, layout: Layout, weights: dict[str, ModelFile], auxiliary: tuple[ModelFile, ...]
    ) -> Manifest:
        numbers = self._opened.numbers

        def present(*names: str) -> tuple[ModelFile, ...]:
            return tuple(weights[f"{name}.safetensors"] for name in names if f"{name}.safetensors" in weights)

        try:
            return Manifest(
                format_version=FORMAT_VERSION,
                architecture=numbers.architecture,
                model_type=numbers.model_type,
                hidden_size=numbers.hidden_size,
                vocab_size=numbers.vocab_size,
                context_length=numbers.context_length,
                kv_elements_per_token=numbers.kv_elements_per_token,
                weights_dtype=self._main_dtype(),
                is_chat=any(file.name == CHAT_TEMPLATE_FILE for file in auxiliary),
                blocks=tuple(weights[block_file(index)] for index in range(len(layout.blocks))),
                before=present("embedding", "before", "shared"),
                after=present("embedding", "after", "shared"),
                auxiliary=auxiliary,
                kind=numbers.kind,
            )
        except ValueError as exc:
            raise UntrustedFileError(f"the model can't be described: {exc}") from exc

    def _main_dtype(self) -> str:
        """The dtype that most bytes are of."""
        n_bytes: Counter[str] = Counter()
        for info in self._tensors.values():
            n_bytes[info.dtype] += info.n_bytes
        return TORCH_NAMES[max(n_bytes, key=lambda dtype: (n_bytes[dtype], dtype))]


def _left_out_note(layout: Layout) -> tuple[str, ...]:
    if not layout.left_out:
        return ()
    return (
        f"{len(layout.left_out)} tensors outside the model's {len(layout.blocks)} blocks were left out (extra "
        f"prediction layers), among them {layout.left_out[0]}",
    )
