"""The folder of a model: its manifest, and its config and tokenizer files under their own names.

    FOLDER/REVISION/manifest.json
    FOLDER/REVISION/signature.json
    FOLDER/REVISION/config/config.json ...   links into the cache of files

Everything here blocks: call it from a thread.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

import structlog

from protocol.disk import storage_errors, write_atomically
from protocol.errors import BrigadeError
from protocol.ids import Revision
from protocol.manifest import Manifest, decode_manifest
from worker.files import FileCache

log = structlog.get_logger(__name__)


class ModelFolders:
    """Manifests and config folders under one folder."""

    def __init__(self, folder: Path, cache: FileCache) -> None:
        self._folder = folder
        self._cache = cache

    def manifest(self, revision: Revision) -> Manifest | None:
        """The manifest if it is here, checked against the revision; a damaged one counts as missing."""
        path = self._folder / revision / "manifest.json"
        try:
            return decode_manifest(path.read_bytes(), expected=revision)
        except (OSError, BrigadeError):
            return None

    def save_manifest(self, revision: Revision, data: bytes) -> Manifest:
        """Check and keep a manifest.

        Raises:
            UntrustedFileError: it isn't the one of this revision.
            StorageError: it can't be written.
        """
        manifest = decode_manifest(data, expected=revision)
        path = self._folder / revision / "manifest.json"
        with storage_errors(self._folder):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, data)
        return manifest

    def signature(self, revision: Revision) -> bytes | None:
        """The signature that was kept, unchecked; None if none was."""
        try:
            return (self._folder / revision / "signature.json").read_bytes()
        except OSError:
            return None

    def save_signature(self, revision: Revision, envelope: bytes) -> None:
        """Keep a signature beside the manifest, which is there.

        Raises:
            StorageError: it can't be written.
        """
        with storage_errors(self._folder):
            write_atomically(self._folder / revision / "signature.json", envelope)

    def config_folder(self, revision: Revision, manifest: Manifest) -> Path:
        """A folder of the model's auxiliary files under their names, made anew from checked files.

        Raises:
            NotFoundError: one isn't in the cache.
            StorageError: the folder can't be made.
        """
        folder = self._folder / revision / "config"
        sources = {file.name: self._cache.checked_path(file.sha256) for file in manifest.auxiliary}
        with storage_errors(self._folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700, parents=True)
            for name, source in sources.items():
                _link(source, folder / name)
        return folder

    def forget_others(self, revisions: Collection[Revision]) -> None:
        """Remove the folders of models that aren't named, as far as that is possible."""
        for child in self._folder.iterdir() if self._folder.is_dir() else ():
            if child.name not in revisions:
                log.info("model_folder_removed", revision=child.name)
                shutil.rmtree(child, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
