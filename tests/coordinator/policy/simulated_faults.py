"""What goes wrong in the simulation, at random: workers die, hang and come back, operators act, clocks are set."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.policy.events import (
    DrainAsked,
    ModelRemoved,
    ReplicasAsked,
    SpansReported,
    WorkerJoined,
    WorkerLeft,
    WorkerNotComing,
)
from protocol.control_messages import SpanReport
from protocol.ids import ModelName
from tests.coordinator.policy.fleet import added
from tests.coordinator.policy.simulated_worker import SimulatedWorker
from tests.coordinator.policy.simulation import Simulation

MODELS = {"small": 6, "middle": 16, "large": 32}
"""Blocks by name."""
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Faults:
    """A source of events for one simulation, from its random numbers."""

    simulation: Simulation

    @property
    def rng(self) -> random.Random:
        """The simulation's own."""
        return self.simulation.rng

    def run(self, n_workers: int, n_events: int, *, faults_per_s: float) -> None:
        """So many workers join, then so many events happen, beats not counted among them."""
        for i in range(n_workers):
            self.simulation.add_worker(i)
        for name in MODELS:
            self.add_model(name)
        while self.simulation.n_events < n_events:
            for _ in range(int(faults_per_s)):
                self.simulation.pass_time(self.rng.random() * 2 / faults_per_s)
                self.something_happens()
            self.simulation.sweep()

    def something_happens(self) -> None:
        """One fault, to a worker or to all."""
        worker = self.rng.choice(list(self.simulation.workers.values()))
        kinds, weights = zip(*self._faults().items(), strict=True)
        self.rng.choices(kinds, weights)[0](worker)

    def _faults(self) -> dict[Callable[[SimulatedWorker], None], float]:
        return {
            self._killed: 12,
            self._stopped: 6,
            self._cut_off: 12,
            self._hangs: 8,
            self._comes_back: 40,
            self._says_it_again: 12,
            self._drained: 2,
            self._models_change: 1,
            self._coordinator_restarts: 0.3,
            self._clock_is_set: 0.5,
        }

    def _killed(self, worker: SimulatedWorker) -> None:
        worker.is_running = False
        self.simulation.disconnect(worker)

    def _stopped(self, worker: SimulatedWorker) -> None:
        if worker.is_connected:
            worker.heard_s = self.simulation.true_s
            serves_on_s = self.rng.choice([0.0, 10.0])
            self.simulation.do(
                WorkerLeft(worker_id=worker.worker_id, reason="interrupted", serves_on_s=serves_on_s)
            )
            self.simulation.later(self.rng.random() * 20, lambda: self._killed(worker))

    def _cut_off(self, worker: SimulatedWorker) -> None:
        self.simulation.disconnect(worker)
        self.simulation.later(
            self.rng.random() * self.rng.choice([1, 5, 30]), lambda: self.simulation.connect(worker)
        )

    def _hangs(self, worker: SimulatedWorker) -> None:
        worker.is_silent = True

        def goes_on() -> None:
            worker.is_silent = False

        self.simulation.later(self.rng.random() * self.rng.choice([2, 8, 30]), goes_on)

    def _comes_back(self, worker: SimulatedWorker) -> None:
        if not worker.is_running:
            worker.start()
            self.simulation.do(WorkerJoined(worker_id=worker.worker_id))
            worker.heard_s = self.simulation.true_s
            if self.rng.random() < 0.2:  # a setting is wrong; whoever starts it mends that
                self.simulation.do(WorkerNotComing(worker_id=worker.worker_id, reason="its start failed"))
                self.simulation.do(WorkerJoined(worker_id=worker.worker_id))
        self.simulation.connect(worker)

    def _says_it_again(self, worker: SimulatedWorker) -> None:
        """A report that comes late: of an epoch that is over, or once more."""
        if worker.is_connected:
            worker.heard_s = self.simulation.true_s
            stale = SpanReport(epoch=max(0, worker.epoch - self.rng.randrange(2)), spans=worker.report().spans)
            self.simulation.do(SpansReported(worker_id=worker.worker_id, report=stale))

    def _drained(self, worker: SimulatedWorker) -> None:
        self.simulation.do(DrainAsked(worker_id=worker.worker_id, reason="an operator asked for it"))
        self.simulation.later(self.rng.random() * 20, lambda: self._killed(worker))

    def _models_change(self, _: SimulatedWorker) -> None:
        name = self.rng.choice(list(MODELS))
        what = self.rng.random()
        if what < 0.25:
            self.simulation.do(ModelRemoved(name=ModelName(name)))
        elif what < 0.6:
            self.add_model(name)
        else:
            self.simulation.do(ReplicasAsked(name=ModelName(name), n_replicas=self.rng.randrange(1, 5)))

    def add_model(self, name: str) -> None:
        """Add or replace it, with a number of blocks that may be another."""
        n_blocks = MODELS[name] + self.rng.randrange(3)
        made = added(name, n_blocks)
        self.simulation.manifests[made.revision] = made.manifest
        self.simulation.do(made)

    def _coordinator_restarts(self, _: SimulatedWorker) -> None:
        self.simulation.true_s += self.rng.random() * 10
        self.simulation.restore()
        for worker in self.simulation.workers.values():
            worker.heard_s = self.simulation.true_s
            if worker.is_connected:
                worker.is_connected = False
                self._reconnect_soon(worker)

    def _reconnect_soon(self, worker: SimulatedWorker) -> None:
        self.simulation.later(self.rng.random() * 6, lambda: self.simulation.connect(worker))

    def _clock_is_set(self, _: SimulatedWorker) -> None:
        """At most once between two sweeps: a time between two such moments means nothing."""
        if self.simulation.clock_was_set:
            return
        self.simulation.clock_was_set = True
        self.simulation.clock_set_at_s.append(self.simulation.true_s)
        self.simulation.clock_is_off_by_s += self.rng.choice([-HOUR_S, HOUR_S, -20.0, 20.0, 5.0])
