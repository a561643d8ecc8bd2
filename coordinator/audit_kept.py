"""Answers of trusted workers that are kept, and how others' answers to the same probes compare with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random

import structlog

from coordinator.audit_asking import Answer
from coordinator.audit_found import Examiner, Found, ask, comparison
from coordinator.audit_session import NoAnswerError
from coordinator.audit_store import AuditStore, RecordedAnswer
from coordinator.policy.audit_rules import MAX_CONFIRMATIONS, N_AGAIN, OWN_RECORD, RECORDED, Comparison
from coordinator.policy.audit_schedule import TRUSTED_RANK, AuditPlan, Candidate
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import NO_RECORD
from protocol.audit_rest import AuditOutcome
from protocol.errors import StorageError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

MAX_RECORDS_ASKED = 3
"""Kept answers, each of another worker, that one is compared with before it fails by them."""


class KeptAnswers:
    """Keeps answers, and has workers asked the same again."""

    def __init__(
        self,
        examiner: Examiner,
        store: AuditStore,
        state: Callable[[], ClusterState],
        clock: Callable[[], float],
        rng: Random,
    ) -> None:
        self._examiner = examiner
        self._store = store
        self._state = state
        self._clock = clock
        self._rng = rng

    async def for_one(self, plan: AuditPlan, candidate: Candidate) -> list[RecordedAnswer]:
        """Those that one can be compared with, in any order; its own only where there are no others'.

        What a worker once said counts no longer when it is quarantined or banned itself.
        """
        recorded = [
            one
            for one in await self._store.recorded(plan.model.revision, plan.blocks)
            if plan.allowed(candidate.held, one.held) is not None and self._is_believed(one.worker_id)
        ]
        self._rng.shuffle(recorded)
        return [one for one in recorded if one.worker_id != candidate.worker_id] or recorded

    async def compared(
        self, found: Found, candidate: Candidate, records: Sequence[RecordedAnswer]
    ) -> list[Comparison]:
        """One worker against an answer of these; if it differs, against those of a few other workers too."""
        compared_with: list[Comparison] = []
        for record in _one_of_each(records):
            one = await self._with_record(found, candidate, record)
            if one is None:
                break
            compared_with.append(one)
            if one.agrees:
                break
        return compared_with

    async def show_again(
        self,
        found: Found,
        candidate: Candidate,
        records: Sequence[RecordedAnswer],
        n_compared: int,
        is_late: Callable[[], bool],
    ) -> bool:
        """Whether enough other probes show it of one that differed from the answers of `n_compared` workers."""
        seeds = {record.seed for record in _one_of_each(records)[:n_compared]}
        n_shown = len(seeds)
        others = {record.seed: record for record in records if record.seed not in seeds}
        for record in list(others.values())[:MAX_CONFIRMATIONS]:
            if n_shown > N_AGAIN or is_late():
                break
            again = await self._with_record(found, candidate, record)
            if again is None:
                break
            if not again.agrees:
                found.comparisons.append(again)
                n_shown += 1
        return n_shown > N_AGAIN

    async def keep(self, plan: AuditPlan, seed: str, answers: Mapping[WorkerId, Answer]) -> None:
        """What trusted ones of two that agree answered."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        for candidate in (plan.target, plan.others[0]):
            given = answers[candidate.worker_id]
            if candidate.rank >= TRUSTED_RANK and not isinstance(given, NoAnswerError):
                answer = RecordedAnswer(
                    held=candidate.held, seed=seed, worker_id=candidate.worker_id, projection=given
                )
                try:
                    await self._store.record(plan.model.revision, plan.blocks, answer, now)
                except StorageError as error:
                    log.warning("audit_answer_not_kept", error_message=error.message)

    async def _with_record(self, found: Found, candidate: Candidate, record: RecordedAnswer) -> Comparison | None:
        given = (await ask(self._examiner, found, record.seed, [candidate]))[candidate.worker_id]
        if isinstance(given, NoAnswerError):
            return None
        name = OWN_RECORD if record.worker_id == candidate.worker_id else RECORDED
        one = (candidate.worker_id, candidate.held, given)
        return comparison(found.plan, one, (name, record.held, record.projection))

    def _is_believed(self, worker_id: WorkerId) -> bool:
        record = self._state().trust.get(worker_id, NO_RECORD)
        return not record.is_quarantined and record.banned_reason is None


def verdict(compared_with: Sequence[Comparison]) -> AuditOutcome:
    """By kept answers: one that agrees clears a worker of what a single other one says, not of two."""
    if not compared_with:
        return "undecided"
    n_differ = sum(not one.agrees for one in compared_with)
    if n_differ == 0:
        return "passed"
    if n_differ == len(compared_with):
        return "failed"
    return "suspected"


def _one_of_each(records: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    """A kept answer of each of a few workers."""
    return list({record.worker_id: record for record in records}.values())[:MAX_RECORDS_ASKED]
