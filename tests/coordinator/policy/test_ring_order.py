from __future__ import annotations

import math
import random
from itertools import permutations

import pytest

from coordinator.policy.ring_order import EXACT_STAGES, ring_s, shortest_ring


@pytest.mark.parametrize("seed", range(10))
def test_up_to_twelve_no_ring_is_shorter(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randint(1, 6)
    links = [[rng.random() for _ in range(n)] for _ in range(n)]  # not alike in both directions

    best = min(ring_s(links, order) for order in permutations(range(n)))
    assert ring_s(links, shortest_ring(links, range(n))) == pytest.approx(best)


@pytest.mark.parametrize("n", [EXACT_STAGES, 30])
def test_places_on_a_circle_are_visited_in_turn(n: int) -> None:
    places = [(math.cos(2 * math.pi * i / n), math.sin(2 * math.pi * i / n)) for i in range(n)]
    random.Random(n).shuffle(places)
    links = [[math.dist(a, b) for b in places] for a in places]

    ring = shortest_ring(links, range(n))
    assert sorted(ring) == list(range(n))
    assert ring_s(links, ring) == pytest.approx(2 * n * math.sin(math.pi / n))


def test_one_stage_has_no_ring_and_two_have_both_directions() -> None:
    assert ring_s([[0.0]], [0]) == 0.0
    assert ring_s([[0.0, 1.0], [2.0, 0.0]], [0, 1]) == 3.0
