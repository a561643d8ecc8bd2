"""Packing a model from the command line: the packages that it needs, and a bar that shows how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from coordinator.cli_output import notes
from coordinator.file_store import FileStore
from coordinator.hash_only_store import HashOnlyStore
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from coordinator.packing import PackedModel

STEPS = {"download": "downloading", "read": "reading", "pack": "packing"}


def packed(source: str, store: FileStore | HashOnlyStore) -> PackedModel:
    """The model that `source` names, in the store.

    Raises:
        ConfigError: packages that are needed aren't installed.
        BrigadeError: as `pack_model`.
    """
    with progress_bar() as progress:  # before the import, which takes seconds
        try:
            from coordinator.packing import pack_model
        except ImportError as exc:
            raise ConfigError(
                f"reading a model needs packages that aren't installed ({exc.name}): pip install '.[packing]' in "
                "Brigade's folder"
            ) from exc
        return pack_model(source, store, progress)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error; gives the function that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    out = notes()
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("reading", total=None)

        def move(step: str, n_done: int, n_total: int) -> None:
            progress.update(task, description=STEPS.get(step, step), completed=n_done, total=n_total or None)

        yield move
