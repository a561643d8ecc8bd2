"""A deterministic simulation of the policy: a thousand workers, random faults, a clock of its own.

Each second every worker that can beats and time passes; between, things happen at random. After each event what it
changed is checked, and now and then everything. Beyond `state.check` and `check_step`: what the coordinator routes
to is really loaded there; no decision of its own takes the last ready holder of a block away; nobody is taken for
silent who was heard; and what was saved rebuilds the state.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from coordinator.policy.coverage import counts, spans_of
from coordinator.policy.effects import Effect, SendToWorker
from coordinator.policy.events import (
    Event,
    Found,
    ModelAdded,
    ModelRemoved,
    ReplicasAsked,
    SocketLost,
    SpansReported,
    TimePassed,
    WorkerBeat,
    WorkerConnected,
    WorkerJoined,
)
from coordinator.policy.invariants import check, check_assignment, check_worker
from coordinator.policy.looking import found, sought
from coordinator.policy.state import ClusterState, PolicySettings, WorkerRecord
from coordinator.policy.stored import restored
from coordinator.policy.transition import apply
from protocol.control_messages import Assign, SpanReport
from protocol.ids import BlockRange, Revision, WorkerId
from protocol.manifest import Manifest
from tests.coordinator.policy.fleet import heartbeat, memory_for
from tests.coordinator.policy.simulated_store import SimulatedStore
from tests.coordinator.policy.simulated_worker import SimulatedWorker

DECISIONS = TimePassed | Found
"""What may change any worker's assignment without anybody's asking."""

FULL_CHECK_EVERY = 1000
"""Events between two checks of everything."""


@dataclass(slots=True)
class Simulation:
    """One cluster. `simulated_faults.Faults` makes things happen to it; `calm_down` lets it come to rest."""

    seed: int
    settings: PolicySettings = field(default_factory=PolicySettings)
    rng: random.Random = field(init=False)
    state: ClusterState = field(init=False)
    store: SimulatedStore = field(default_factory=SimulatedStore)
    workers: dict[WorkerId, SimulatedWorker] = field(default_factory=dict)
    manifests: dict[Revision, Manifest] = field(default_factory=dict)
    true_s: float = 0.0
    clock_is_off_by_s: float = 1e9
    n_events: int = 0
    n_beats: int = 0
    due: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)
    """Settle which of two things that are due at the same moment comes first."""
    clock_was_set: bool = False
    """Since the last sweep."""
    clock_set_at_s: list[float] = field(default_factory=list)
    is_calm: bool = False

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.restore()

    def restore(self) -> None:
        """A coordinator starts with what was saved."""
        self.state = restored(self.store.stored(), self.settings, self.now_s())
        self.check_all()

    # -------------------------------------------------------------- running

    def calm_down(self, seconds: int) -> list[tuple[Effect, ...]]:
        """Nothing more goes wrong; what the sweeps decide from here on."""
        self.is_calm = True
        decided = []
        for _ in range(seconds):
            self.pass_time(1.0)
            decided.append(self.sweep())
        return decided

    def sweep(self) -> tuple[Effect, ...]:
        """Everybody beats, time passes; in either order, since nobody says which comes first."""
        is_beat_first = self.rng.random() < 0.5
        if is_beat_first:
            self._beat()
        effects = self.do(TimePassed())
        if (what := sought(self.state, self.now_s())) is not None:
            effects += self.do(found(self.state, what))
        self.clock_was_set = False
        if not is_beat_first:
            self._beat()
        return effects

    def do(self, event: Event) -> tuple[Effect, ...]:
        """Apply an event, save, check, and carry messages to workers."""
        before = self.state
        self.state, effects = apply(before, event, self.now_s())
        self.store.save(effects)
        self._check_step(before, event)
        if isinstance(event, WorkerBeat):
            self.n_beats += 1
        else:
            self.n_events += 1
            if self.n_events % FULL_CHECK_EVERY == 0:
                self.check_all()
        for effect in effects:
            if isinstance(effect, SendToWorker) and isinstance(effect.message, Assign):
                self._deliver(self.workers[effect.worker_id], effect.message)
        return effects

    def now_s(self) -> float:
        """What the coordinator's clock says."""
        return self.true_s + self.clock_is_off_by_s

    def pass_time(self, seconds: float) -> None:
        """Let time go on, and do what becomes due."""
        until_s = self.true_s + seconds
        while self.due and self.due[0][0] <= until_s:
            self.true_s, _, action = heapq.heappop(self.due)
            action()
        self.true_s = until_s

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do it when so much time has passed."""
        heapq.heappush(self.due, (self.true_s + seconds, next(self.numbers), action))

    # -------------------------------------------------------------- checks

    def check_all(self) -> None:
        """Everything that must hold of a state."""
        check(self.state)
        self.store.check(self.state)
        for worker in self.state.workers.values():
            self._check_truth(worker)

    def _check_step(self, before: ClusterState, event: Event) -> None:
        if self.state.workers is not before.workers:
            changed = [w for w in self._concerned(event) if before.workers.get(w.worker_id) is not w]
            for worker in changed:
                check_worker(worker)
                check_assignment(self.state, worker)
                self._check_truth(worker)
                old = before.workers.get(worker.worker_id)
                if old is not None and old.assignment is not worker.assignment:
                    self._check_epoch(old, worker)
                if isinstance(event, TimePassed):
                    self._check_silence(old, worker)
            if isinstance(event, DECISIONS) and changed:
                self._check_routes(before)

    def _concerned(self, event: Event) -> Iterable[WorkerRecord]:
        """Workers that the event may have changed; that it changed no others is seen when everything is checked."""
        if isinstance(event, DECISIONS | ModelAdded | ModelRemoved | ReplicasAsked):
            return self.state.workers.values()
        worker = self.state.workers.get(event.worker_id)
        return () if worker is None else (worker,)

    def _check_epoch(self, old: WorkerRecord, new: WorkerRecord) -> None:
        self.store.check_worker(self.state, new.worker_id)
        assert new.assignment.epoch >= old.assignment.epoch
        assert new.assignment.epoch > old.assignment.epoch or new.assignment.spans == old.assignment.spans

    def _check_truth(self, worker: WorkerRecord) -> None:
        """What is routed to is loaded there."""
        simulated = self.workers[worker.worker_id]
        if worker.is_routable and simulated.is_running:
            for span in worker.served:
                assert span in simulated.loaded, f"{worker.worker_id} doesn't have {span}, which it is to serve"

    def _check_silence(self, old: WorkerRecord | None, new: WorkerRecord) -> None:
        """Nobody who was heard counts as silent, whatever the clock does."""
        if old is not None and old.presence != new.presence and new.presence in ("suspect", "lost"):
            heard_s = self.workers[new.worker_id].heard_s
            n_set = sum(set_s >= heard_s for set_s in self.clock_set_at_s)
            silent_s = self.true_s - heard_s
            limit_s = self.settings.suspect_after_s if new.presence == "suspect" else self.settings.lost_after_s
            assert silent_s >= limit_s - n_set * self.settings.longest_sweep_s - 0.001, (
                f"{new.worker_id} is {new.presence}, though heard {silent_s:.1f} s ago"
            )

    def _check_routes(self, before: ClusterState) -> None:
        """Of those that are still here, no block lost its last ready holder to a decision."""
        here = [w for w in self.state.workers.values() if w.is_routable]
        pinned = {w.worker_id for w in here if w.pinned_blocks is not None}
        for model in self.state.models.values():
            n_blocks = model.manifest.n_blocks
            served = (s for w in here for s in spans_of(model, before.workers[w.worker_id].served))
            if min(counts((s.blocks for s in served), n_blocks)) == 0:
                continue
            source = before.workers
            after = (
                s
                for w in here
                for s in spans_of(model, (source[w.worker_id] if w.worker_id in pinned else w).served)
            )
            assert min(counts((s.blocks for s in after), n_blocks)) > 0, (
                f"a decision broke the routes of {model.name}"
            )

    # -------------------------------------------------------------- what workers do

    def _beat(self) -> None:
        for worker in self.workers.values():
            if worker.is_connected and not worker.is_silent:
                worker.heard_s = self.true_s
                self.do(WorkerBeat(worker_id=worker.worker_id, heartbeat=BEAT))

    def add_worker(self, i: int) -> None:
        """A machine more, which enrols now and connects soon."""
        rng = self.rng
        memory = memory_for(rng.choice([0, 1, 3, 6, 8, 16, 40, 100]), ends=rng.choice([0, 1, 2, 4]))
        worker = SimulatedWorker(
            worker_id=WorkerId(f"w{i:04}"), memory_bytes=memory, speed=rng.uniform(0.3, 3.0), is_open=i % 3 == 0
        )
        if rng.random() < 0.01:
            start = rng.randrange(0, 5)
            worker.pinned_blocks = BlockRange(start, start + rng.randrange(1, 6))
        self.workers[worker.worker_id] = worker
        self.do(WorkerJoined(worker_id=worker.worker_id))
        worker.heard_s = self.true_s
        self.later(rng.random() * 3, lambda: self.connect(worker))

    def connect(self, worker: SimulatedWorker) -> None:
        """Its process opens a control socket, if it runs and has none."""
        if not worker.is_running or worker.is_connected:
            return
        worker.is_connected, worker.is_silent, worker.heard_s = True, False, self.true_s
        self.do(WorkerConnected(worker_id=worker.worker_id, announce=worker.announcement()))

    def disconnect(self, worker: SimulatedWorker) -> None:
        """Its control socket ends."""
        if worker.is_connected:
            worker.is_connected = False
            self.do(SocketLost(worker_id=worker.worker_id))

    def _deliver(self, worker: SimulatedWorker, message: Assign) -> None:
        if not (worker.is_connected and worker.is_running):
            return
        if worker.is_silent or (self.rng.random() < 0.02 and not self.is_calm):
            self.disconnect(worker)  # the message is lost with its socket
            self.later(self.rng.random() * 4, lambda: self.connect(worker))
        elif worker.assigned(message, self.manifests):
            self._report(worker, worker.report("downloading"))
            process, epoch = worker.process, worker.epoch
            self.later(self.rng.random() * 6, lambda: self._load(worker, process, epoch))

    def _load(self, worker: SimulatedWorker, process: int, epoch: int) -> None:
        if (worker.process, worker.epoch, worker.is_running) != (process, epoch, True):
            return
        has_more = worker.load_next(fails=not self.is_calm and self.rng.random() < 0.03)
        self._report(worker, worker.report())
        if has_more:
            self.later(self.rng.random() * 6, lambda: self._load(worker, process, epoch))

    def _report(self, worker: SimulatedWorker, report: SpanReport) -> None:
        if worker.is_connected:
            worker.is_silent, worker.heard_s = False, self.true_s
            self.do(SpansReported(worker_id=worker.worker_id, report=report))


BEAT = heartbeat()
