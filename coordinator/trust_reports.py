"""What clients and workers tell of other workers, on its way into the cluster's state as evidence.

It is gathered for a moment and then handed in at once, so that many generations cost one transaction, and so that
a machine that goes down with a hundred sessions has failed once for each API key, not a hundred times.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from coordinator.cluster import Cluster
from coordinator.policy.breakers import WEIGHTS
from coordinator.policy.evidence_weights import WEIGHINGS, EvidenceKind
from coordinator.policy.trust import Evidence, Reporter, repeated
from coordinator.policy.trust_events import EvidenceSeen, Seen
from protocol.background import uninterrupted
from protocol.errors import ModelFaultError, OverloadedError, ProtocolError, StorageError
from protocol.ids import FileHash, KeyId, SessionId, WorkerId
from protocol.rest import STALLED, HopFailure

log = structlog.get_logger(__name__)

GATHER_S = 2.0
MAX_WAITING = 10_000
"""Pieces of evidence that may wait; what comes beyond is lost, and logged."""
SUCCESSES = ("stop", "length")
MAX_AT_ONCE = 50
"""Handed in by one transaction, between two of which routes get their turn."""
MAX_SESSIONS = 4096
"""Failed sessions that are remembered: a client that asks again tells of the same failure again."""

_KIND_BY_CODE: dict[str, EvidenceKind] = {ProtocolError.code: "wrong_data", OverloadedError.code: "overloaded"}
"""Of failures that count by `breakers.WEIGHTS`; the others are failed hops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    worker_id: WorkerId
    kind: EvidenceKind
    reporter: Reporter


@dataclass(slots=True, kw_only=True)
class _Gathered:
    """The same said of the same by the same, within the moment."""

    weight: float
    example: str
    n_times: int = 1


class TrustReports:
    """Takes what is told without waiting; `hand_in_forever` hands it to the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._waiting: dict[_About, _Gathered] = {}
        self._sessions: OrderedDict[SessionId, None] = OrderedDict()

    def take_failure(
        self, session_id: SessionId, key_id: KeyId, route: Sequence[WorkerId], failure: HopFailure
    ) -> None:
        """A client says how a session of its key failed: once a session, and of workers on its route only."""
        blamed = [failure.worker_id] if failure.worker_id in route else []
        weight = 0.0 if failure.code == ModelFaultError.code else WEIGHTS.get(failure.code, 0.0)
        kind = _KIND_BY_CODE.get(failure.code, "hop_failed")
        if failure.code == STALLED:
            kind, weight = "stalled", WEIGHINGS["stalled"].weight
            blamed = blamed if failure.worker_id is not None else list(route)
        if not blamed or weight == 0.0 or not self._is_new(session_id):
            return
        for worker_id in blamed:
            assert worker_id is not None
            about = _About(worker_id=worker_id, kind=kind, reporter=f"key:{key_id}")
            self._gather(about, weight / len(blamed), f"{failure.code[:64]}, session {session_id[:12]}")

    def take_finished(self, key_id: KeyId, route: Sequence[WorkerId], outcome: str) -> None:
        """The tail says how a generation of this key ended. That it failed says nothing of whose fault it was."""
        tail = route[-1]
        for worker_id in dict.fromkeys(route):
            if outcome in SUCCESSES:
                about = _About(worker_id=worker_id, kind="work", reporter=f"key:{key_id}")
                self._gather(about, WEIGHINGS["work"].weight, "generations that ended as they should")
            elif outcome == "deadline":
                about = _About(worker_id=worker_id, kind="deadline", reporter=f"worker:{tail}")
                self._gather(about, WEIGHINGS["deadline"].weight / len(route), "generations that ran out of time")

    def take_bad_source(self, worker_id: WorkerId, reporter: WorkerId, file: FileHash) -> None:
        """A worker says that another sent wrong bytes for a file."""
        about = _About(worker_id=worker_id, kind="bad_bytes", reporter=f"worker:{reporter}")
        self._gather(about, WEIGHINGS["bad_bytes"].weight, f"file {file[:12]}")

    async def hand_in_forever(self, *, every_s: float = GATHER_S) -> None:
        """Hand in what was gathered every `every_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            await self.hand_in()

    async def hand_in(self) -> None:
        """Hand in all that was gathered by now; what can't be saved waits for the next time."""
        for _ in range(math.ceil(len(self._waiting) / MAX_AT_ONCE)):
            gathered = {about: self._waiting.pop(about) for about in list(self._waiting)[:MAX_AT_ONCE]}
            try:
                items = tuple(_seen(about, what) for about, what in gathered.items())
                await uninterrupted(self._cluster.handle(EvidenceSeen(items=items)))
            except StorageError as error:
                newer, self._waiting = self._waiting, gathered
                for about, what in newer.items():
                    self._merge(about, what)
                log.warning("trust_not_saved", error_message=error.message, n_waiting=len(self._waiting))
                return

    def _gather(self, about: _About, weight: float, example: str) -> None:
        self._merge(about, _Gathered(weight=weight, example=example))

    def _merge(self, about: _About, what: _Gathered) -> None:
        known = self._waiting.get(about)
        if known is not None:
            known.n_times += what.n_times
            known.weight = max(known.weight, what.weight)
        elif len(self._waiting) >= MAX_WAITING:
            log.warning("trust_evidence_lost", worker_id=about.worker_id, kind=about.kind, n_waiting=MAX_WAITING)
        else:
            self._waiting[about] = what

    def _is_new(self, session_id: SessionId) -> bool:
        if session_id in self._sessions:
            return False
        self._sessions[session_id] = None
        if len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
        return True


def _seen(about: _About, what: _Gathered) -> Seen:
    """Good work counts as often as it was done; what failed within one moment failed once."""
    is_good = WEIGHINGS[about.kind].is_good
    weight = repeated(what.weight, about.reporter, what.n_times) if is_good else what.weight
    evidence = Evidence(kind=about.kind, reporter=about.reporter, weight=weight)
    times = f"{what.n_times} times: " if what.n_times > 1 else ""
    return Seen(worker_id=about.worker_id, evidence=evidence, reason=f"{times}{what.example}")
