"""Random faults under a virtual clock. A failure names its seed: `simulated(seed, ...)` repeats it exactly."""

from __future__ import annotations

import pytest

from coordinator.policy.state import PolicySettings
from tests.coordinator.policy.simulated_faults import Faults
from tests.coordinator.policy.simulation import Simulation

CALM_S = 60
"""Long enough for workers to be lost, for what is left to be placed, and for all of it to load."""
STILL_S = 25
STAYING = PolicySettings(replan="off")
MOVING = PolicySettings(replan_every_s=2.0, replan_margin=1.02)
MOVING_CALM_S = 120
"""Long enough for a whole fleet to be moved to something better besides, step by step."""


def simulated(
    seed: int,
    *,
    n_workers: int,
    n_events: int,
    faults_per_s: float,
    settings: PolicySettings = STAYING,
    calm_s: int = CALM_S,
) -> Simulation:
    """A run of which no step broke anything, and which then came to rest."""
    simulation = Simulation(seed, settings)
    try:
        Faults(simulation).run(n_workers, n_events, faults_per_s=faults_per_s)
        decided = simulation.calm_down(calm_s)
        simulation.check_all()
        assert not any(decided[-STILL_S:]), f"still deciding: {[len(effects) for effects in decided]}"
    except AssertionError as exc:
        raise AssertionError(
            f"simulated({seed}, n_workers={n_workers}, n_events={n_events}, faults_per_s={faults_per_s}) after "
            f"{simulation.n_events} events: {exc}"
        ) from exc
    return simulation


@pytest.mark.parametrize("seed", range(20))
def test_no_fault_breaks_anything_in_a_fleet_of_sixty(seed: int) -> None:
    simulated(seed, n_workers=60, n_events=300, faults_per_s=10.0)


@pytest.mark.parametrize(
    ("seed", "n_workers", "faults_per_s"), [(0, 40, 3.0), (5, 40, 3.0), (1, 40, 10.0), (2, 12, 1.0)]
)
def test_no_fault_breaks_anything_while_workers_are_moved_to_something_better(
    seed: int, n_workers: int, faults_per_s: float
) -> None:
    simulated(
        seed,
        n_workers=n_workers,
        n_events=200,
        faults_per_s=faults_per_s,
        settings=MOVING,
        calm_s=MOVING_CALM_S,
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_fault_breaks_anything_in_a_fleet_that_hardly_has_room(seed: int) -> None:
    simulated(seed, n_workers=12, n_events=300, faults_per_s=1.0)


@pytest.mark.timeout(240)
def test_no_fault_breaks_anything_among_a_thousand_workers() -> None:
    simulation = simulated(1, n_workers=1000, n_events=10_000, faults_per_s=25.0)

    assert simulation.n_events >= 10_000
    assert simulation.n_beats > 10_000


def test_the_same_seed_makes_the_same_run() -> None:
    first, second = (simulated(7, n_workers=12, n_events=200, faults_per_s=2.0) for _ in range(2))

    assert first.state == second.state
