"""An empty SQLite database at the newest schema, migrated once a process: some tenth of a second for each test.

How a start migrates one that isn't there is tested in `tests/migrations`, `tests/coordinator/test_database.py`, and
by all tests that start the program itself.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from coordinator.database import migrate


@cache
def migrated_database() -> Path:
    """The file to copy. Blocks; no event loop may run in this thread."""
    path = Path(tempfile.mkdtemp(prefix="brigade-schema-")) / "brigade.db"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


def put_migrated_database(state: Path) -> None:
    """Make a coordinator's state folder with nothing but such a database, unless there is something. Blocks too."""
    if state.exists():
        return
    database = migrated_database()
    state.mkdir(mode=0o700, parents=True)
    shutil.copy(database, state)
