"""Fixtures and hooks for all tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import settings
from xdist import is_xdist_worker
from xdist.remote import Producer

from benchmarks.held_ports import held_port
from protocol.background import freeze_heap
from tests.support import scheduling
from tests.support.open_files import collect_what_is_left
from tests.support.postgres import WHEN_TESTS_ARE_OVER, database_url, postgres_server

__all__ = ["database_url", "postgres_server"]


def pytest_configure() -> None:
    """Have what is logged of an exception be Python's own traceback.

    structlog's default paints source code and variables of each frame, which takes longer than what is tested.
    """
    structlog.get_config()["processors"][-1].exception_formatter = structlog.dev.plain_traceback


settings.register_profile("brigade", deadline=None)
"""How long an example takes is the machine's affair; hypothesis' own limit is 200 ms."""
settings.load_profile("brigade")


@pytest.fixture
def own_port() -> Iterator[int]:
    """Where a test may listen, stop, and listen again, whatever runs beside it."""
    with held_port() as port:
        yield port


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes long, after pytest-randomly has shuffled."""
    scheduling.put_long_ones_first(items)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take what is imported by now out of every later garbage collection; have programs forked in no time later.

    torch, transformers and the tests are a million objects that live until the end, and a worker that loads blocks
    collects garbage, which would walk through all of them every time. What programs are forked from imports as
    much: on a busy machine that takes longer than a test may, and here no test's clock runs yet.
    """
    freeze_heap()
    forking = sys.modules.get("tests.support.forked_program")
    if forking is not None and is_xdist_worker(session):
        forking.program_server()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """The same at the end of each file, which may have imported more; what it left open fails it, not the next."""
    yield
    if nextitem is None or nextitem.path != item.path:
        left = collect_and_freeze()
        assert left == [], f"{item.path.name} left to the garbage collector, in any of its tests: {left}"


def pytest_sessionfinish() -> None:
    WHEN_TESTS_ARE_OVER.close()


def collect_and_freeze() -> list[str]:
    """What was left open."""
    left = collect_what_is_left()
    freeze_heap()
    return left


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `--numprocesses auto` means."""
    return scheduling.processes()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> scheduling.OrderedScheduling | None:
    """What `--dist loadfile` means."""
    return scheduling.OrderedScheduling(config, log) if config.getvalue("dist") == "loadfile" else None
