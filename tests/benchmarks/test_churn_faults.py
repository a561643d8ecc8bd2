"""What the churn benchmark may break, and when."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.churn_faults import COORDINATOR, KINDS, OF_WORKERS, next_fault

HOLDERS = {"head": ("head-a", "head-b"), "tail": ("tail-a", "tail-b")}
EVERYBODY = frozenset((COORDINATOR, *HOLDERS["head"], *HOLDERS["tail"]))


@given(
    seed=st.integers(0, 10_000),
    well=st.sets(st.sampled_from(sorted(EVERYBODY))),
    busy=st.sets(st.sampled_from("ab")),
)
def test_a_range_keeps_a_holder_that_is_well_or_loses_both_for_a_second(
    seed: int, well: set[str], busy: set[str]
) -> None:
    named = frozenset(name for name in EVERYBODY if name[-1] in busy)
    fault = next_fault(random.Random(seed), HOLDERS, frozenset(well), named)
    if fault is None:
        assert COORDINATOR not in well
        assert not any(well.issuperset(names) for names in HOLDERS.values())
        return
    assert well.issuperset(fault.names), "only what is well is broken"
    left = well - set(fault.names)
    for names in HOLDERS.values():
        if set(names) & set(fault.names) and fault.kind != "kill_both":
            assert left & set(names)
    assert fault.kind != "ban" or COORDINATOR in well, "it is the coordinator that bans"
    if fault.kind == "kill_both":
        assert well == EVERYBODY
        assert fault.lasts_s <= 1.0


def test_everything_happens_and_a_seed_repeats_it() -> None:
    def drawn() -> list[str]:
        rng = random.Random(7)
        faults = [next_fault(rng, HOLDERS, EVERYBODY, frozenset({"head-b"})) for _ in range(300)]
        return [f"{fault.kind} {fault.names}" for fault in faults if fault is not None]

    assert {name.split()[0] for name in drawn()} == set(KINDS)
    assert drawn() == drawn()


def test_nothing_happens_to_the_coordinator_where_that_was_not_asked_for() -> None:
    rng = random.Random(3)
    faults = [next_fault(rng, HOLDERS, EVERYBODY, frozenset(), OF_WORKERS) for _ in range(300)]
    assert {fault.kind for fault in faults if fault is not None} == OF_WORKERS
    assert all(COORDINATOR not in fault.names for fault in faults if fault is not None)
