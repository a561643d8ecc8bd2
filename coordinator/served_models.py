"""What the commands that sign and verify ask of a coordinator, and of the store beside it."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from coordinator import state_folder as names
from coordinator.admin_client import AdminTarget, changed_as_read
from coordinator.cli_packing import progress_bar
from coordinator.file_store import FileStore
from coordinator.signing_files import check_files
from coordinator.state_folder import StateFolder, read_state_file
from protocol.author_keys import AuthorKey
from protocol.author_rest import AuthorList
from protocol.cluster_rest import ChangeModelRequest, ClusterStatus
from protocol.errors import ConfigError, NotFoundError, UntrustedFileError
from protocol.ids import ModelName, Revision
from protocol.manifest import MAX_MANIFEST_BYTES, Manifest, decode_manifest
from protocol.model_signature import MAX_SIGNATURE_BYTES, ModelSignature
from protocol.rest import ModelInfo

Check = Callable[[bytes, Revision], ModelSignature]
"""Sees that a trusted author made a signature, for the model of this revision."""


def model_path(name: ModelName) -> str:
    """Where operators find a model."""
    return f"/admin/v1/models/{quote(name, safe='')}"


def check_is_here(target: AdminTarget, status: ClusterStatus, command: str) -> None:
    """See that the coordinator's files are beside this program: it has to be the one of this state folder.

    Raises:
        ConfigError: it isn't.
    """
    if read_state_file(target.state / names.COORDINATOR_ID) != status.coordinator_id:
        raise ConfigError(
            f"`{command}` works in the coordinator's own folder, and {target.state} isn't the one of the "
            f"coordinator at {target.url}: run it on the coordinator's machine and name its folder with --state"
        )


def served_model(target: AdminTarget, name: ModelName) -> ModelInfo:
    """A model that is served; NotFoundError if there is none of this name."""
    return target.ask(lambda session: session.get(model_path(name), ModelInfo))


def bring_signature(target: AdminTarget, name: ModelName, signature: bytes) -> ModelInfo:
    """Have a served model be signed so."""
    request = ChangeModelRequest(signature=signature.decode())
    path = model_path(name)
    return target.ask(lambda session: changed_as_read(session, path, ModelInfo, request, ModelInfo))


def trusted_authors(target: AdminTarget) -> dict[AuthorKey, str | None]:
    """Names by key of the authors whom the coordinator trusts.

    Raises:
        ConfigError: there are none.
    """
    found = target.ask(lambda session: session.get("/admin/v1/authors", AuthorList))
    if not found.authors:
        raise ConfigError(
            f"the coordinator at {target.url} trusts no author: `coord author add NAME KEY`, or name the key with "
            "--author"
        )
    return {author.key: author.name for author in found.authors}


def verified_model(
    target: AdminTarget, name: ModelName, given: bytes | None, check: Check
) -> tuple[Revision, Manifest, ModelSignature]:
    """A served model's revision, manifest and signature (`given`, or its own), all its files hashed again.

    Raises:
        ConfigError: the coordinator isn't the one of this machine's state folder.
        UntrustedFileError: it isn't signed by whom `check` wants, or a file isn't what was signed.
        StorageError: a file is missing.
    """
    status = target.ask(lambda session: session.get("/admin/v1/status", ClusterStatus))
    check_is_here(target, status, "coord model verify")
    revision = served_model(target, name).revision
    path = f"/v1/manifests/{revision}"
    data = target.ask(lambda session: session.get_bytes(path, max_bytes=MAX_MANIFEST_BYTES))
    manifest = decode_manifest(data, expected=revision)
    signature = check(_own_signature(target, name, path) if given is None else given, revision)
    with progress_bar() as progress:
        check_files(FileStore(StateFolder(target.state).files), manifest, progress)
    return revision, manifest, signature


def _own_signature(target: AdminTarget, name: ModelName, path: str) -> bytes:
    try:
        return target.ask(lambda session: session.get_bytes(f"{path}/signature", max_bytes=MAX_SIGNATURE_BYTES))
    except NotFoundError as exc:
        raise UntrustedFileError(f"{name} isn't signed: `coord model sign {name} --key FILE`") from exc
