"""The models that are served, and their files: nothing else in the store can be fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import structlog

from coordinator.cluster import Cluster
from coordinator.file_store import FileStore
from coordinator.policy.events import ModelAdded, ModelRemoved, ModelSigned, PinnedEndsAsked, ReplicasAsked
from coordinator.policy.signing import why_unsigned
from coordinator.policy.state import ModelRecord
from protocol.error_forms import repeated
from protocol.errors import ConflictError, ForbiddenError, NotFoundError, StorageError, UntrustedFileError
from protocol.ids import FileHash, ModelName, Revision, checked_model_name
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest, encode_manifest
from protocol.model_signature import verified_signature

log = structlog.get_logger(__name__)


class Catalogue:
    """Models by name, manifests by revision, files by hash. Changes are made one at a time."""

    def __init__(self, store: FileStore, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster
        self._changing = asyncio.Lock()
        self._indexed: Mapping[ModelName, ModelRecord] | None = None
        self._manifests: dict[Revision, Manifest] = {}
        self._sizes: dict[FileHash, int] = {}

    def names(self) -> tuple[ModelName, ...]:
        """Every model, in the order in which they were added."""
        return tuple(self._cluster.state.models)

    def model(self, name: str) -> ModelRecord:
        """The model of this name; NotFoundError says which ones there are."""
        model = self._cluster.state.models.get(ModelName(name))
        if model is None:
            have = ", ".join(self.names()[:20]) or "none yet (`coord model add` adds one)"
            raise NotFoundError(f"there is no model {repeated(name)}; the models here: {have}")
        return model

    def manifest_bytes(self, revision: str) -> bytes:
        """The manifest of a model that is served; NotFoundError if no model has this revision."""
        self._index()
        manifest = self._manifests.get(Revision(revision))
        if manifest is None:
            raise NotFoundError(f"no model here has the revision {repeated(revision)}")
        return encode_manifest(manifest)

    def signature_bytes(self, revision: str) -> bytes:
        """The signature of a model that is served; NotFoundError if no model of this revision is signed."""
        for model in self._cluster.state.models.values():
            if model.revision == revision and model.signature is not None:
                return model.signature.envelope
        raise NotFoundError(f"no model here of the revision {repeated(revision)} is signed")

    def n_missing_files(self, model: ModelRecord) -> int:
        """How many of a model's files the store lacks. Blocks."""
        return sum(not self._store.has(file.sha256) for file in model.manifest.all_files())

    def file_path(self, sha256: str) -> Path:
        """Where a file of a model that is served lies; NotFoundError for every other name."""
        self._index()
        if FileHash(sha256) not in self._sizes:
            raise NotFoundError(f"no model here has a file {repeated(sha256)}")
        return self._store.path(FileHash(sha256))

    async def add(
        self,
        name: str,
        revision: Revision,
        n_replicas: int = 1,
        *,
        signature: str | None = None,
        pinned_ends: bool = False,
    ) -> None:
        """Serve a manifest, already in the store with all its files, as `name`. Again: changes what is given.

        Raises:
            ForbiddenError: models must be signed here, and no trusted author signed this one.
            UntrustedFileError: the signature is none, or another model's.
            InvalidRequestError: the name can't be one.
            ConflictError: the name stands for another revision.
            NotFoundError, UntrustedFileError: the store has no such manifest.
            StorageError: a file of it is missing or has another size.
        """
        model_name = checked_model_name(name)
        async with self._changing:
            present = self._cluster.state.models.get(model_name)
            if present is None:
                await self._added(model_name, revision, n_replicas, signature, pinned_ends=pinned_ends)
            elif present.revision == revision:
                await self._changed(present, signature=signature, pinned_ends=pinned_ends or None)
            else:
                raise ConflictError(
                    f"there is a model {name} already, of revision {present.revision[:12]}; remove it first "
                    f"(`coord model remove {name}`), or take another name"
                )

    async def _added(
        self, name: ModelName, revision: Revision, n_replicas: int, signature: str | None, *, pinned_ends: bool
    ) -> None:
        manifest = await asyncio.to_thread(_checked_manifest, self._store, revision)
        signed = None if signature is None else verified_signature(signature.encode(), revision)
        if why := why_unsigned(self._cluster.state, name, signed):
            raise ForbiddenError(why)
        await self._cluster.handle(
            ModelAdded(
                name=name,
                revision=revision,
                manifest=manifest,
                n_replicas=n_replicas,
                signature=signed,
                pinned_ends=pinned_ends,
            )
        )
        log.info("model_added", model=name, revision=revision, n_blocks=manifest.n_blocks)

    async def change(
        self,
        name: str,
        *,
        n_replicas: int | None = None,
        signature: str | None = None,
        pinned_ends: bool | None = None,
    ) -> ModelRecord:
        """Change what is given; the model as it is then.

        `n_replicas`: so many workers are to hold each block, as far as there is room.

        Raises:
            NotFoundError: there is no such model.
            UntrustedFileError: the signature is none, or another model's; nothing is changed.
        """
        async with self._changing:
            await self._changed(
                self.model(name), n_replicas=n_replicas, signature=signature, pinned_ends=pinned_ends
            )
            return self.model(name)

    async def _changed(
        self,
        model: ModelRecord,
        *,
        n_replicas: int | None = None,
        signature: str | None = None,
        pinned_ends: bool | None = None,
    ) -> None:
        if signature is not None:
            signed = verified_signature(signature.encode(), model.revision)
            await self._cluster.handle(ModelSigned(name=model.name, signature=signed))
        if n_replicas is not None:
            await self._cluster.handle(ReplicasAsked(name=model.name, n_replicas=n_replicas))
        if pinned_ends is not None:
            await self._cluster.handle(PinnedEndsAsked(name=model.name, is_wanted=pinned_ends))

    async def remove(self, name: str) -> None:
        """Serve the model no more, have the workers drop it, and remove the files that no other model has.

        Raises:
            NotFoundError: there is no such model.
        """
        async with self._changing:
            model = self.model(name)
            await self._cluster.handle(ModelRemoved(name=model.name))
            self._index()
            referenced = {*self._sizes, *(FileHash(revision) for revision in self._manifests)}
            try:
                n_files, n_bytes = await asyncio.to_thread(self._store.remove_unreferenced, referenced)
            except (ConflictError, StorageError) as error:
                # The model is gone all the same; the next removal takes its files too.
                log.warning("files_kept", model=name, error_message=error.message)
            else:
                log.info("model_removed", model=name, n_files=n_files, size_bytes=n_bytes)

    def _index(self) -> None:
        """Bring the indexes up to date: the state's mapping is never changed in place, so it tells."""
        models = self._cluster.state.models
        if models is self._indexed:
            return
        self._manifests = {model.revision: model.manifest for model in models.values()}
        self._sizes = {
            file.sha256: file.size_bytes for model in models.values() for file in model.manifest.all_files()
        }
        self._indexed = models


def _checked_manifest(store: FileStore, revision: Revision) -> Manifest:
    """The manifest, all of whose files are in the store. Blocks."""
    digest = FileHash(revision)
    if not store.has(digest):  # refuses what is no hash, too
        raise NotFoundError(f"the coordinator's store has no manifest {repeated(revision)}: pack the model first")
    if store.size(digest) > MAX_MANIFEST_BYTES:
        raise UntrustedFileError(f"the file {revision} is too big for a manifest")
    with store.open(digest) as file:
        manifest = decode_manifest(file.read(MAX_MANIFEST_BYTES + 1), expected=revision)
    for wanted in manifest.all_files():
        size_bytes = store.size(wanted.sha256) if store.has(wanted.sha256) else None
        if size_bytes != wanted.size_bytes:
            state = "is missing" if size_bytes is None else f"has {size_bytes} bytes"
            raise StorageError(
                f"{wanted.name} ({wanted.sha256[:12]}, {wanted.size_bytes} bytes) {state} in the coordinator's "
                "store: add the model again"
            )
    return manifest
