"""Which tests share one of xdist's processes, and in which order: dear things are set up once, nobody idles."""

from __future__ import annotations

import math
import os
from pathlib import PurePosixPath

import pytest
from xdist.scheduler import LoadFileScheduling

MAX_PROCESSES = 4
SMOLLM2 = (
    "tests/faults/test_coordinator_away.py",
    "tests/faults/test_hanging_workers.py",
    "tests/faults/test_killed_workers.py",
    "tests/e2e/test_generate.py",
    "tests/e2e/test_processes.py",
    "tests/system/test_smollm2.py",
)
"""Files that share the packed SmolLM2, transformers' own, and clusters that serve it: a minute of work to make."""


class OrderedScheduling(LoadFileScheduling):
    """`--dist loadfile`, but the files of SmolLM2 stay together, and all are begun in the order of collection."""

    def __init__(self, config: pytest.Config, *arguments: object) -> None:
        super().__init__(config, *arguments)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "SmolLM2" if file in SMOLLM2 else file


def processes() -> int:
    """One more than there are cores, since many tests wait for something most of their time."""
    return min((os.cpu_count() or 1) + 1, MAX_PROCESSES)


def put_long_ones_first(items: list[pytest.Item]) -> None:
    """SmolLM2's files folder by folder, then others by the longest time that a test of theirs may take.

    A long file that is begun last would keep one process busy beside others that have nothing left to do. Files
    whose tests may take as long stay as they were.
    """
    allowed_s: dict[str, float] = {}
    for item in items:
        allowed_s[file_of(item)] = max(allowed_s.get(file_of(item), 0.0), _allowed_s(item))

    def turn(item: pytest.Item) -> tuple[float, str]:
        file = file_of(item)
        return (-math.inf, str(PurePosixPath(file).parent)) if file in SMOLLM2 else (-allowed_s[file], "")

    items.sort(key=turn)


def _allowed_s(item: pytest.Item) -> float:
    """What its own mark says; those without one have the same, and less."""
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else 0.0


def file_of(item: pytest.Item) -> str:
    return item.nodeid.split("::", 1)[0]
