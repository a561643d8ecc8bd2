from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_evasion import (
    IN_A_ROW,
    SERVED,
    Rows,
    answered,
    came_to_nothing,
    counted,
    evading,
    pardoned,
    served,
)
from protocol.ids import WorkerId

A, B = WorkerId("a"), WorkerId("b")


def after(*what: str, rows: Rows | None = None) -> Rows:
    rows = rows or {}
    for one in what:
        match one:
            case "nothing":
                rows = came_to_nothing(rows, A)
            case "served":
                rows = served(rows, [A, B])
            case "pardoned":
                rows = pardoned(rows, A)
            case "other":
                rows = answered(rows, B)
            case _:
                rows = answered(rows, A)
    return rows


def test_audits_that_come_to_nothing_count_while_clients_are_served() -> None:
    rows = after(*["nothing"] * IN_A_ROW, *["served"] * SERVED, "other")
    rows, seen = counted(rows, A)
    assert seen is not None
    assert (seen.worker_id, seen.evidence.kind, seen.evidence.weight) == (A, "overloaded", 0.25)
    assert seen.reason == "5 audits in a row came to nothing, while 5 generations ended well over it"
    assert "a (5 in a row)" in evading(rows)
    assert counted(after("nothing", rows=rows), A)[1] is None  # not again before it served as many more
    assert counted(after("nothing", *["served"] * SERVED, rows=rows), A)[1] is not None
    assert after("answered", rows=rows) == {}
    assert after("pardoned", rows=rows) == {}


@given(st.lists(st.sampled_from(["nothing", "served", "other", "answered"]), max_size=60))
def test_nothing_counts_without_a_row_work_and_others_that_answer(what: list[str]) -> None:
    rows = after(*what)
    _, seen = counted(rows, A)
    since = what[len(what) - what[::-1].index("answered") :] if "answered" in what else what
    assert (seen is not None) <= (
        since.count("nothing") >= IN_A_ROW and since.count("served") >= SERVED and "other" in since
    )
    assert B not in rows  # nothing is kept of whom audits reach
