from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.bad_sources import BadSources
from protocol.ids import FileHash, WorkerId
from protocol.worker_rest import BAD_SOURCE_S

WORKER, OTHER = WorkerId("w-a"), WorkerId("w-b")
FILE = FileHash("a" * 64)


def test_a_bad_source_is_bad_for_that_file_and_for_a_while() -> None:
    bad = BadSources()
    assert bad.add(WORKER, FILE, 100.0)
    assert bad.is_bad(WORKER, FILE, 100.0 + BAD_SOURCE_S - 1)
    assert not bad.is_bad(OTHER, FILE, 100.0)
    assert not bad.is_bad(WORKER, FileHash("b" * 64), 100.0)
    assert not bad.is_bad(WORKER, FILE, 100.0 + BAD_SOURCE_S)
    assert len(bad) == 0


def test_said_again_it_is_no_news_and_lasts_no_longer() -> None:
    bad = BadSources()
    bad.add(WORKER, FILE, 100.0)
    assert not bad.add(WORKER, FILE, 500.0)
    assert not bad.is_bad(WORKER, FILE, 100.0 + BAD_SOURCE_S)
    assert bad.add(WORKER, FILE, 100.0 + BAD_SOURCE_S)


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 2000)), max_size=60))
def test_it_remembers_a_bounded_number_and_always_the_newest(reports: list[tuple[int, float]]) -> None:
    bad = BadSources(max_sources=5)
    for number, now_s in sorted(reports, key=lambda report: report[1]):
        bad.add(WorkerId(f"w-{number}"), FILE, now_s)
        assert bad.is_bad(WorkerId(f"w-{number}"), FILE, now_s)
        assert len(bad) <= 5
