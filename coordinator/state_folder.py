"""The coordinator's folder: what must survive a restart and isn't in the database. 0700, every file 0600.

    join-secret             what workers join with; previous ones that still admit: join-secrets-previous.json
                            (fingerprints of all that were rotated away: join-secrets-retired.json)
    signing-keys.json       keys of session tokens and tickets
    ca.pem ca.key           the cluster's CA           server.pem server.key   the coordinator's own certificate
    coordinator-id          its name                   url                     where it listens (written at start)
    admin.key client.key    API keys made at first start
    brigade.db              the database, unless another is named              files/   model files (FileStore)
    unsaved-reports.jsonl   reports of generations that wait for the database; only while it is away

Everything here blocks: call it from a thread where there is an event loop.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from protocol.disk import partial_of, storage_errors, write_atomically
from protocol.errors import ConflictError, StorageError
from protocol.file_locks import try_lock

JOIN_SECRET = "join-secret"  # noqa: S105 - the name of a file
PREVIOUS_SECRETS = "join-secrets-previous.json"
RETIRED_SECRETS = "join-secrets-retired.json"
SIGNING_KEYS = "signing-keys.json"
CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca.key"
SERVER_CERTIFICATE = "server.pem"
SERVER_KEY = "server.key"
COORDINATOR_ID = "coordinator-id"
ADMIN_KEY = "admin.key"
CLIENT_KEY = "client.key"
URL = "url"
LOCK = "lock"
UNSAVED_REPORTS = "unsaved-reports.jsonl"
_WRITTEN = (
    *(JOIN_SECRET, PREVIOUS_SECRETS, RETIRED_SECRETS, SIGNING_KEYS, CA_CERTIFICATE, CA_KEY, SERVER_CERTIFICATE),
    *(SERVER_KEY, COORDINATOR_ID, ADMIN_KEY, CLIENT_KEY, URL, UNSAVED_REPORTS),
)

MAX_FILE_BYTES = 2**20
"""Far above anything written here; a larger file isn't ours."""


class StateFolder:
    """The folder at `root`, which is made if it isn't there.

    Raises:
        StorageError: it can't be made or written; the message says why and what to do.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()
        with storage_errors(self.root):
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (self.root / COORDINATOR_ID).is_file():
                self.root.chmod(0o700)  # ours; a folder that held something else before is left as it is
            with tempfile.TemporaryFile(dir=self.root):
                pass  # a folder that can't be written is found now, not at the first change

    @property
    def files(self) -> Path:
        """Where the model files are: the root of the `FileStore`."""
        return self.root / "files"

    @property
    def database_url(self) -> str:
        """The SQLite database that is used where no other is named."""
        return f"sqlite+aiosqlite:///{self.root / 'brigade.db'}"

    def path(self, name: str) -> Path:
        """Where the file `name` is or would be."""
        return self.root / name

    def read(self, name: str) -> str | None:
        """The text of a file without surrounding white space; None if it isn't there.

        Raises:
            StorageError: it can't be read or isn't text.
        """
        return read_state_file(self.path(name))

    def write(self, name: str, text: str) -> None:
        """Replace a file as a whole: at any moment the old text or the new one is there, readable by us alone.

        Raises:
            StorageError: the disk is full or the folder can't be written.
        """
        path = self.path(name)
        with storage_errors(path):
            write_atomically(path, (text if text.endswith("\n") else text + "\n").encode())

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one coordinator; the system lets go of it when the process ends, however it ends.

        What one that was killed had half written, a secret perhaps, is removed.

        Raises:
            ConflictError: another coordinator runs on this folder.
        """
        with storage_errors(self.path(LOCK)):
            held = try_lock(self.path(LOCK))
        if held is None:
            raise ConflictError(
                f"another coordinator runs on {self.root}: stop it first, or give this one a folder of its own "
                "(--state)"
            )
        try:
            self._remove_partials()
            yield
        finally:
            held.release()

    def _remove_partials(self) -> None:
        for name in _WRITTEN:
            with suppress(OSError):  # each is removed by the next write too, which says what is wrong
                partial_of(self.path(name)).unlink(missing_ok=True)


def default_state(environ: Mapping[str, str] | None = None) -> Path:
    """The coordinator's state folder where none is named: `BRIGADE_STATE`, else the user's own place for state."""
    environ = os.environ if environ is None else environ
    if named := environ.get("BRIGADE_STATE"):
        return Path(named).expanduser()
    return Path(platformdirs.user_state_dir("brigade")) / "coordinator"


def read_state_file(path: Path) -> str | None:
    """The text of a small file of ours without surrounding white space; None if it isn't there."""
    with storage_errors(path):
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
    try:
        if len(data) > MAX_FILE_BYTES:
            raise StorageError(f"{path} has over {MAX_FILE_BYTES} bytes: it isn't a file of Brigade's state")
        return data.decode("utf-8").strip()
    except UnicodeDecodeError as exc:
        raise StorageError(f"{path} isn't text: restore it from a backup, or remove it") from exc
