"""Models and the authors who sign them, in the database."""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from coordinator.policy.authors import Author
from coordinator.policy.effects import DeleteAuthor, DeleteModel, SaveAuthor, SaveModel
from coordinator.policy.state import ModelRecord
from coordinator.tables import AuthorRow, ModelFileRow, ModelRow
from protocol.author_keys import author_key_from_text
from protocol.error_forms import error_fields
from protocol.errors import StorageError, UntrustedFileError
from protocol.ids import ModelName, Revision
from protocol.manifest import Manifest, ModelFile, decode_manifest, encode_manifest
from protocol.model_signature import ModelSignature, verified_signature

log = structlog.get_logger(__name__)


def persist_model(session: Session, effect: SaveModel | DeleteModel | SaveAuthor | DeleteAuthor) -> None:
    """Carry out one effect."""
    match effect:
        case SaveModel():
            _save_model(session, effect)
        case DeleteModel(name=name):
            session.execute(delete(ModelRow).where(ModelRow.name == name))
        case SaveAuthor(author=author):
            added_at = datetime.fromtimestamp(author.added_s, UTC)
            session.add(AuthorRow(key=author.key, name=author.name, added_at=added_at, added_by=author.added_by))
        case DeleteAuthor(key=key):
            session.execute(delete(AuthorRow).where(AuthorRow.key == key))


async def load_models(session: AsyncSession) -> tuple[ModelRecord, ...]:
    """All models in the order in which they were added.

    Raises:
        StorageError: a stored manifest doesn't match its revision.
    """
    return tuple(_model(row) for row in await session.scalars(select(ModelRow).order_by(ModelRow.id)))


async def load_authors(session: AsyncSession) -> tuple[Author, ...]:
    """All authors in the order in which they were added.

    Raises:
        StorageError: one's key is none.
    """
    rows = await session.scalars(select(AuthorRow).order_by(AuthorRow.added_at, AuthorRow.key))
    return tuple(_author(row) for row in rows)


def _save_model(session: Session, effect: SaveModel) -> None:
    row = session.scalar(select(ModelRow).where(ModelRow.name == effect.name))
    if row is None:
        row = ModelRow(name=effect.name)
        session.add(row)
    row.revision = effect.revision
    row.manifest = encode_manifest(effect.manifest)
    row.n_replicas = effect.n_replicas
    row.signature = None if effect.signature is None else effect.signature.envelope
    row.pinned_ends = effect.pinned_ends
    session.flush()
    session.execute(delete(ModelFileRow).where(ModelFileRow.model_id == row.id))
    for name, file in _files_by_name(effect.manifest).items():
        session.add(ModelFileRow(model_id=row.id, name=name, sha256=file.sha256, size_bytes=file.size_bytes))


def _files_by_name(manifest: Manifest) -> dict[str, ModelFile]:
    files = (*manifest.blocks, *manifest.before, *manifest.after, *manifest.auxiliary)
    return {file.name: file for file in files}


def _model(row: ModelRow) -> ModelRecord:
    try:
        manifest = decode_manifest(row.manifest, expected=Revision(row.revision))
    except Exception as exc:
        raise StorageError(
            f"the stored manifest of model {row.name} is damaged: remove and add the model again"
        ) from exc
    return ModelRecord(
        name=ModelName(row.name),
        revision=Revision(row.revision),
        manifest=manifest,
        n_replicas=row.n_replicas,
        signature=_signature(row),
        pinned_ends=row.pinned_ends,
    )


def _signature(row: ModelRow) -> ModelSignature | None:
    """None too for one that doesn't verify (any more): then the model counts as unsigned."""
    if row.signature is None:
        return None
    try:
        return verified_signature(row.signature, Revision(row.revision))
    except UntrustedFileError as error:
        log.warning("stored_signature_refused", model=row.name, **error_fields(error))
        return None


def _author(row: AuthorRow) -> Author:
    try:
        key = author_key_from_text(row.key)
    except ValueError as exc:
        raise StorageError(f"the stored key of author {row.name!r} is damaged: {exc}") from exc
    return Author(key=key, name=row.name, added_s=row.added_at.timestamp(), added_by=row.added_by)
