from __future__ import annotations

from coordinator.policy.pipelines import evenest_pipeline, rank, rank_of, turned_to_fit
from tests.coordinator.policy.random_fleets import candidate, task_of


def test_what_pipelines_are_worth_depends_on_what_is_wanted() -> None:
    quick, much = (1.0, 0.5), (3.0, 0.9)  # seconds a token, tokens a second

    assert rank("one-stream", *quick) < rank("one-stream", *much)
    assert rank("many-streams", *quick) > rank("many-streams", *much)
    assert rank("balance", *quick) < rank("balance", *much), "twice the one is worth twice the other"


def test_a_ring_begins_where_the_models_ends_have_room() -> None:
    narrow, wide = candidate("narrow", 1.0, 1, end=10), candidate("wide", 1.0, 4, end=10)
    task = task_of([narrow, wide, wide], n_blocks=7, link_s=0.5)

    assert turned_to_fit(task, (1, 0, 2)) == (1, 0, 2)
    assert turned_to_fit(task, (0, 1, 2)) == (2, 0, 1)
    assert turned_to_fit(task, (0, 1)) is None
    assert evenest_pipeline(task, (0, 1, 2)) is None
    found = evenest_pipeline(task, (1, 0, 2))
    assert found is not None
    assert (found.step_s, found.slowest_s) == (7.0 + 1.5, 3.0)
    assert rank_of("one-stream", [found]) == (8.5, 3.0)
