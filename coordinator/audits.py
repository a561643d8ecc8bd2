"""Audits: has workers audited as they are due, has what is found count as evidence, keeps it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from random import Random, SystemRandom

import structlog

from coordinator.audit_asking import Examiner
from coordinator.audit_comparing import Comparer
from coordinator.audit_found import Found
from coordinator.audit_kept import KeptAnswers
from coordinator.audit_store import AuditStore
from coordinator.cluster import Cluster
from coordinator.policy import audit_accusations, audit_evasion, audit_schedule
from coordinator.policy.audit_evasion import Rows
from coordinator.policy.audit_evidence import evidence_of
from coordinator.policy.audit_repeats import OWN_REPEAT
from coordinator.policy.trust import NO_RECORD
from coordinator.policy.trust_events import AuditEnded, Seen
from coordinator.stored_rows import StoredGeneration
from coordinator.trust_reports import SUCCESSES
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.errors import BrigadeError, ConflictError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

LOOK_S = 1.0


class Auditor:
    """Owner of the audits under way, and of what they have cost whom."""

    def __init__(
        self,
        cluster: Cluster,
        examiner: Examiner,
        store: AuditStore,
        *,
        clock: Callable[[], float],
        rng: Random | None = None,
    ) -> None:
        self.store = store
        self.n_found: Counter[AuditOutcome] = Counter()
        """Audits since the start, by what they found of the worker that was due."""
        self._cluster = cluster
        self._clock = clock
        self._rng = rng or SystemRandom()
        kept = KeptAnswers(examiner, store, lambda: cluster.state, clock, self._rng)
        self._comparer = Comparer(examiner, kept, _now_s)
        self._busy: set[WorkerId] = set()
        self._n_under_way = 0
        self._paid_at_s: dict[WorkerId, float] = {}
        """When each has its share of audits back; by a clock that never steps."""
        self._rows: Rows = {}

    @property
    def share(self) -> float:
        """Most of a worker's time that audits may take now."""
        return self._cluster.state.settings.audit_share

    def take_finished(self, generation: StoredGeneration) -> None:
        """A generation is over, with the outcome that its tail reported."""
        if generation.outcome in SUCCESSES:
            self._rows = audit_evasion.served(self._rows, (worker_id for worker_id, _, _ in generation.route))

    def pardon(self, worker_id: WorkerId) -> None:
        """Forget that its audits came to nothing; what it was accused of goes with its blame."""
        self._rows = audit_evasion.pardoned(self._rows, worker_id)

    def evading(self) -> str:
        """Whose audits come to nothing, in words for operators."""
        return audit_evasion.evading(self._rows)

    async def audit_forever(self, *, every_s: float = LOOK_S) -> None:
        """Begin audits as they are due, until cancelled."""
        async with asyncio.TaskGroup() as audits:
            while True:
                await asyncio.sleep(every_s)
                state = self._cluster.state
                for worker_id in audit_schedule.due(
                    state, self.share, every_s, self._not_now(), self._rng, n_under_way=self._n_under_way
                ):
                    audits.create_task(self._audit_quietly(worker_id), name=f"audit of {worker_id}")

    async def audit(self, worker_id: WorkerId, *, is_scheduled: bool = False) -> AuditInfo:
        """One audit of a worker, now; one by hand asks those too who have had their share.

        Raises:
            ConflictError: it serves nothing, or is being audited.
            StorageError: what was found couldn't be kept.
        """
        if worker_id in self._busy:
            raise ConflictError(f"worker {worker_id} is being audited at this moment; ask again in a few seconds")
        busy = self._not_now() if is_scheduled else self._busy
        plan = audit_schedule.plan(self._cluster.state, worker_id, busy, self._rng)
        if plan is None:
            raise ConflictError(f"worker {worker_id} serves no blocks now, so there is nothing to audit")
        asked = {worker_id, *(other.worker_id for other in plan.others)}
        self._busy |= asked
        self._n_under_way += 1
        try:
            found = await self._comparer.found(plan)
            self._charge(found)
            self._prove(found)
            return await self._settled(found, is_scheduled=is_scheduled)
        finally:
            self._busy -= asked  # only now: the next audit of the same goes by what this one accused them of
            self._n_under_way -= 1

    async def _audit_quietly(self, worker_id: WorkerId) -> None:
        try:
            await self.audit(worker_id, is_scheduled=True)
        except BrigadeError as error:
            log.info("audit_dropped", worker_id=worker_id, error_code=error.code, error_message=error.message)
        except Exception:  # the audit's outermost edge: a defect in one must not end the coordinator
            log.exception("audit_broke", worker_id=worker_id)

    # -------------------------------------------------------------- shares of time

    def _not_now(self) -> set[WorkerId]:
        """Who is busy with audits, or was asked more than its share."""
        workers, now_s = self._cluster.state.workers, _now_s()
        self._paid_at_s = {w: at_s for w, at_s in self._paid_at_s.items() if at_s > now_s and w in workers}
        self._rows = {w: row for w, row in self._rows.items() if w in workers}
        return self._busy | {
            worker_id
            for worker_id, at_s in self._paid_at_s.items()
            if not audit_schedule.has_paid(workers[worker_id], self.share, at_s - now_s)
        }

    def _charge(self, found: Found) -> None:
        """Have all pay who were asked; who was silent kept us waiting for as long as the longest answer takes."""
        now_s, workers, share = _now_s(), self._cluster.state.workers, self.share
        for worker_id, error in found.asked.items():
            if share <= 0.0 or worker_id not in workers:
                continue
            is_silent = error is not None and error.failure == "silent"
            price_s = found.n_asked[worker_id] * audit_schedule.price_s(workers[worker_id], share)
            if is_silent:
                price_s = max(price_s, audit_schedule.ANSWER_S / share)
            self._paid_at_s[worker_id] = max(self._paid_at_s.get(worker_id, 0.0), now_s) + price_s

    # -------------------------------------------------------------- what follows

    async def _settled(self, found: Found, *, is_scheduled: bool) -> AuditInfo:
        info = found.info(self._clock())
        if is_scheduled and not found.asked:
            return info  # nobody could be asked: that is no news, and `coord status` says whom it concerns
        self.n_found[info.outcome] += 1
        log.info(
            "audited",
            worker_id=info.worker_id,
            partner=info.partner,
            referee=info.referee,
            outcome=info.outcome,
            partner_outcome=info.partner_outcome,
        )
        items = (*evidence_of(info, self._cluster.state, self._clock()), *self._evasions(found))
        compared = _compared_workers(found)
        if items or compared:
            await self._cluster.handle(AuditEnded(items=items, compared=compared, accused=found.accused))
        await self.store.save(info, datetime.fromtimestamp(self._clock(), UTC))
        return info

    def _prove(self, found: Found) -> None:
        """Who is accused time and again fails, though fresh probes show nothing at the time."""
        if found.accused is None:
            return
        earlier = self._cluster.state.trust.get(found.accused, NO_RECORD).accused_ago
        accusations = audit_accusations.after_audit(earlier, is_accused=True)
        if audit_accusations.is_proved(accusations):
            n_audits = 1 + audit_accusations.N_LATER
            times = f"time {len(accusations)} in {n_audits} audits"
            found.proved(f"but it was {times}, which rounding hardly brings about")

    def _evasions(self, found: Found) -> list[Seen]:
        items = []
        for worker_id, error in found.asked.items():
            if error is None:
                self._rows = audit_evasion.answered(self._rows, worker_id)
            elif error.failure in ("busy", "faulty", "unreachable"):
                self._rows = audit_evasion.came_to_nothing(self._rows, worker_id)
                self._rows, seen = audit_evasion.counted(self._rows, worker_id)
                items += [seen] if seen is not None else []
        return items


def _compared_workers(found: Found) -> tuple[WorkerId, ...]:
    """The two whose answers were compared, or the one that was compared with itself.

    None where an audit came to nothing, or went by kept answers alone.
    """
    if not found.comparisons:
        return ()
    if not found.plan.others:
        return (found.plan.target.worker_id,) if found.partner == OWN_REPEAT else ()
    return found.plan.target.worker_id, found.plan.others[0].worker_id


def _now_s() -> float:
    return asyncio.get_running_loop().time()
