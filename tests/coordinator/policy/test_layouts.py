from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.policy.handover import Spans
from coordinator.policy.layouts import Layout
from coordinator.policy.modelled import modelled_speed
from coordinator.policy.state import ModelRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, added


def any_spans(rng: random.Random, models: list[ModelRecord]) -> Spans:
    spans = []
    for model in models:
        start = rng.randrange(8)
        blocks = BlockRange(start, rng.randint(start + 1, 8))
        spans.append(SpanAssignment(model=model.name, revision=model.revision, blocks=blocks))
    return tuple(rng.sample(spans, rng.randint(0, len(spans))))


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_a_layout_that_was_changed_is_as_one_made_so_but_for_a_better_way_of_one_stream(seed: int) -> None:
    rng, fleet = random.Random(seed), Fleet()
    for name in "mn":
        fleet.do(added(name))
    workers = [fleet.join(f"w{i}", speed=rng.uniform(0.2, 3.0)) for i in range(6)]
    models = list(fleet.state.models.values())
    layout = Layout.of(fleet.state, {worker_id: any_spans(rng, models) for worker_id in workers})
    for _ in range(6):
        layout = layout.changed({w: any_spans(rng, models) for w in rng.sample(workers, rng.randint(1, 2))})
    anew = Layout.of(fleet.state, layout.spans)

    for model in models:
        held = {w: s for w, spans in layout.spans.items() for s in spans if s.model == model.name}
        exact = modelled_speed(fleet.state, model, held) if held else None
        assert anew.speeds[model.name] == exact
        assert layout.served[model.name].n_holders == anew.served[model.name].n_holders
        found = layout.speeds[model.name]
        assert (found is None) == (exact is None)
        if found is not None and exact is not None:
            assert found.tokens_per_s == pytest.approx(exact.tokens_per_s)
            assert found.step_s >= exact.step_s * (1 - 1e-9)


def test_fewer_replicas_than_are_wanted_arent_kept_and_more_neednt_be() -> None:
    fleet = Fleet()
    fleet.do(added())
    model = fleet.state.models[ModelName("m")]
    whole = (SpanAssignment(model=model.name, revision=model.revision, blocks=BlockRange(0, 8)),)
    a, b = (fleet.join(name) for name in "ab")
    both = Layout.of(fleet.state, {a: whole, b: whole})

    assert both.changed({a: ()}).keeps_replicas(both)
    assert not both.changed({a: (), WorkerId("b"): ()}).keeps_replicas(both)
