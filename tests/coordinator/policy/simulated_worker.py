"""A worker as the simulation has it: what it is told, what it has loaded, and how long that takes. No I/O.

It does as `worker.duties` does: loads what is wanted beside what it has if both fit, else drops what is unwanted
first; and drops what is unwanted as soon as everything wanted is loaded, the worst that a real one does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.policy.sizing import span_bytes
from coordinator.policy.statuses import status_as
from protocol.control_messages import Announce, Assign, SpanAssignment, SpanReport, SpanState, SpanStatus
from protocol.ids import BlockRange, Revision, WorkerId
from protocol.manifest import Manifest
from tests.coordinator.policy.fleet import OPEN, announce


@dataclass(slots=True, kw_only=True)
class SimulatedWorker:
    """One machine with a worker on it. Times are seconds that nobody sets back."""

    worker_id: WorkerId
    memory_bytes: int
    speed: float
    pinned_blocks: BlockRange | None = None
    is_open: bool = False
    """Whether its precision is left to the coordinator."""
    is_running: bool = True
    is_connected: bool = False
    is_silent: bool = False
    heard_s: float = 0.0
    process: int = 0
    """Counts how often it was started, so that what an earlier process had begun is not finished by a later."""
    epoch: int = 0
    wanted: tuple[SpanAssignment, ...] = ()
    loaded: dict[SpanAssignment, int] = field(default_factory=dict)
    """Bytes of weights by span, in the order in which they were loaded."""
    failed: set[SpanAssignment] = field(default_factory=set)
    manifests: dict[Revision, Manifest] = field(default_factory=dict)

    def start(self) -> None:
        """A process that holds nothing."""
        self.process += 1
        self.is_running, self.is_silent, self.epoch = True, False, 0
        self.wanted, self.loaded, self.failed = (), {}, set()

    def announcement(self) -> Announce:
        """The first message of a control socket."""
        return announce(
            self.worker_id,
            memory=self.memory_bytes,
            speed=self.speed,
            epoch=self.epoch,
            spans=self._statuses("loading"),
            pinned_blocks=self.pinned_blocks,
            device=OPEN if self.is_open else None,
            leaving=tuple(span for span in self.loaded if span not in self.wanted),
        )

    def assigned(self, message: Assign, manifests: dict[Revision, Manifest]) -> bool:
        """Take an assignment; whether it is newer than the one in force."""
        if message.epoch <= self.epoch:
            return False
        self.epoch, self.wanted, self.failed = message.epoch, message.spans, set()
        self.manifests |= manifests
        self._drop_unwanted_if_done()
        return True

    def report(self, state: SpanState = "loading") -> SpanReport:
        """What it says of its spans; of one that isn't loaded, that it is in `state`."""
        return SpanReport(epoch=self.epoch, spans=self._statuses(state))

    def load_next(self, *, fails: bool) -> bool:
        """Load the next wanted span; whether there are more."""
        span = next((s for s in self.wanted if s not in self.loaded and s not in self.failed), None)
        if span is None:
            return False
        n_bytes = span_bytes(self.manifests[span.revision], span.blocks, span.quantization or "float32", 0)
        for other in [s for s in self.loaded if s not in self.wanted]:
            if self._n_free_bytes() < n_bytes:
                del self.loaded[other]
        if fails or self._n_free_bytes() < n_bytes:
            self.failed.add(span)
        else:
            self.loaded[span] = n_bytes
        self._drop_unwanted_if_done()
        return any(s not in self.loaded and s not in self.failed for s in self.wanted)

    def _n_free_bytes(self) -> int:
        floor = min(64 * 2**20, self.memory_bytes // 10)
        return self.memory_bytes - floor - sum(self.loaded.values())

    def _drop_unwanted_if_done(self) -> None:
        if all(span in self.loaded for span in self.wanted):
            self.loaded = {span: self.loaded[span] for span in self.wanted}

    def _statuses(self, state: SpanState) -> tuple[SpanStatus, ...]:
        return tuple(self._status(span, state) for span in self.wanted)

    def _status(self, span: SpanAssignment, state: SpanState) -> SpanStatus:
        if span in self.loaded:
            state = "ready"
        elif span in self.failed:
            state = "failed"
        return status_as(span, state, "" if state == "ready" else "simulated")
