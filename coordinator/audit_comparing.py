"""One audit: asks two workers, compares what they answer, and where they differ finds out which one is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Protocol

import structlog

from coordinator.audit_asking import Answer
from coordinator.audit_found import Found, compare_all, comparison, not_shown_again, outcome_of, why_none
from coordinator.audit_session import NoAnswerError
from coordinator.audit_store import AuditStore, RecordedAnswer
from coordinator.policy.audit_rules import (
    MAX_CONFIRMATIONS,
    OWN_RECORD,
    RECORDED,
    Comparison,
    Ruling,
    accused,
    outcomes,
)
from coordinator.policy.audit_schedule import TRUSTED_RANK, AuditPlan, Candidate
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import NO_RECORD
from protocol.audit_rest import AuditOutcome
from protocol.errors import StorageError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

MAX_RECORDS_ASKED = 3
"""Kept answers, each of another worker, that one is compared with before it fails by them."""

MAX_SILENCES = 2
"""Answers, each waited for as long as one may take, that those may owe by whom a failure is to be confirmed."""

_Compared = dict[frozenset[str], Comparison]


class Examiner(Protocol):
    """Who asks workers."""

    async def answers(
        self, plan: AuditPlan, seed: str, candidates: Sequence[Candidate]
    ) -> Mapping[WorkerId, Answer]:
        """What each of them makes of the probe with this seed."""


class Comparer:
    """Carries audits out, as planned."""

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

    async def found(self, plan: AuditPlan) -> Found:
        """What comes of an audit."""
        return await (self._compared(plan) if plan.others else self._compared_with_records(plan))

    # -------------------------------------------------------------- two workers

    async def _compared(self, plan: AuditPlan) -> Found:
        target, partner = plan.target, plan.others[0]
        found, seed = Found(plan=plan, partner=partner.worker_id), secrets.token_hex(16)
        answers = await self._asked(found, seed, [target, partner])
        if not self._all_answered(found, answers):
            return found
        direct = _direct(compare_all(plan, [target, partner], answers), target, partner)
        assert direct is not None, "the plan names a partner that can be compared"
        found.comparisons.append(direct)
        if direct.agrees:
            found.outcome = found.partner_outcome = "passed"
            await self._record(plan, seed, answers)
            return found
        ruling, comparisons = await self._ruled(found, seed, answers, target, plan.others)
        if accused(ruling, target.worker_id, partner.worker_id):
            _take_referee(found, ruling, comparisons)
            ruling = await self._confirmed(found, ruling)
        found.outcome, found.partner_outcome = ruling.target, ruling.partner
        if ruling.target == ruling.partner == "suspected":
            found.words = "nobody could say which of the two is wrong"
            await self._decided_by_records(found)
        return found

    async def _ruled(
        self,
        found: Found,
        seed: str,
        answers: Mapping[WorkerId, Answer],
        one: Candidate,
        others: Sequence[Candidate],
    ) -> tuple[Ruling, _Compared]:
        """Who is wrong of one and the first of the others, which differ, by the rest who could decide."""
        other, *rest = others
        referees = [c for c in rest if c.rank >= max(one.rank, other.rank)]
        if referees:
            answers = {**answers, **await self._asked(found, seed, referees)}
        comparisons = compare_all(found.plan, [one, other, *referees], answers)
        ruled = outcomes(one.worker_id, other.worker_id, comparisons, [c.worker_id for c in referees])
        return ruled, comparisons

    async def _confirmed(self, found: Found, first: Ruling) -> Ruling:
        """A failure stands if one of a few fresh probes shows it again: rounding alone hardly does so twice.

        Whom it was found by may fall silent: then the next one stands in, as long as others are left to decide.
        """
        everybody = (found.plan.target, *found.plan.others)
        name = accused(first, everybody[0].worker_id, everybody[1].worker_id)
        (failed,) = (c for c in everybody if c.worker_id == name)
        others = [c for c in everybody if c is not failed]
        n_asked = n_silent = 0
        while n_asked < MAX_CONFIRMATIONS and n_silent < MAX_SILENCES and found.asked[failed.worker_id] is None:
            n_asked, seed = n_asked + 1, secrets.token_hex(16)
            answers = await self._asked(found, seed, [failed, others[0]])
            direct = _direct(compare_all(found.plan, [failed, others[0]], answers), failed, others[0])
            if direct is None:
                n_silent += found.asked[others[0].worker_id] is not None
                others = others[1:] if len(others) > 2 else others
                continue
            if direct.agrees:
                continue
            again, comparisons = await self._ruled(found, seed, answers, failed, others)
            if again.target == "failed":
                found.comparisons.append(direct)
                _take_referee(found, again, comparisons)
                return first
            n_silent += not again.referee and any(found.asked.get(c.worker_id) is not None for c in others[1:])
        return not_shown_again(found, first, failed.worker_id, n_asked, has_given_up=n_silent >= MAX_SILENCES)

    async def _asked(self, found: Found, seed: str, candidates: Sequence[Candidate]) -> dict[WorkerId, Answer]:
        answers = dict(await self._examiner.answers(found.plan, seed, candidates))
        found.take_answers(answers)
        return answers

    def _all_answered(self, found: Found, answers: Mapping[WorkerId, Answer]) -> bool:
        given = answers[found.plan.target.worker_id]
        if isinstance(given, NoAnswerError):
            found.outcome = outcome_of(given)
        given = answers[found.plan.others[0].worker_id]
        if isinstance(given, NoAnswerError):
            found.partner_outcome = outcome_of(given)
        found.words = why_none(answers)
        return not found.words

    # -------------------------------------------------------------- kept answers

    async def _decided_by_records(self, found: Found) -> None:
        """Both are given the probes of earlier audits, whose answers are kept."""
        plan, partner = found.plan, found.plan.others[0]
        checked = {
            c.worker_id: await self._with_records(found, c, _one_of_each(await self._records(plan, c)))
            for c in (plan.target, partner)
        }
        verdicts = {worker_id: _verdict(all_of_one) for worker_id, all_of_one in checked.items()}
        if set(verdicts.values()) != {"passed", "failed"}:
            return
        found.referee, found.words = RECORDED, ""
        found.comparisons.extend(c for all_of_one in checked.values() for c in all_of_one)
        found.outcome = verdicts[plan.target.worker_id]
        found.partner_outcome = verdicts[partner.worker_id]

    async def _compared_with_records(self, plan: AuditPlan) -> Found:
        found = Found(plan=plan)
        records = await self._records(plan, plan.target)
        found.comparisons = await self._with_records(found, plan.target, _one_of_each(records))
        if found.comparisons:
            found.outcome = _verdict(found.comparisons)
            found.partner = found.comparisons[0].other
            if found.outcome == "failed" and not await self._differs_again(found, records):
                found.outcome, found.words = (
                    "suspected",
                    "a single kept probe showed it, so it may have been rounding",
                )
        elif (error := found.asked.get(plan.target.worker_id)) is not None:
            found.partner, found.outcome = RECORDED, outcome_of(error)
            found.words = why_none({plan.target.worker_id: error})
        elif plan.n_busy:
            found.words = (
                f"the {plan.n_busy} others that hold them are loaded, or busy with audits; try again later"
            )
        else:
            found.words = (
                "no other worker holds them in a form that can be compared, and no answer of an earlier audit is "
                "kept; a second worker that holds them makes audits possible"
            )
        return found

    async def _with_records(
        self, found: Found, candidate: Candidate, records: Sequence[RecordedAnswer]
    ) -> list[Comparison]:
        """One worker against answers that are kept: against one; if it differs, against the others too."""
        compared_with: list[Comparison] = []
        for record in records:
            one = await self._with_record(found, candidate, record)
            if one is None:
                break
            compared_with.append(one)
            if one.agrees:
                break
        return compared_with

    async def _with_record(self, found: Found, candidate: Candidate, record: RecordedAnswer) -> Comparison | None:
        given = (await self._asked(found, record.seed, [candidate]))[candidate.worker_id]
        if isinstance(given, NoAnswerError):
            return None
        name = OWN_RECORD if record.worker_id == candidate.worker_id else RECORDED
        one = (candidate.worker_id, candidate.held, given)
        return comparison(found.plan, one, (name, record.held, record.projection))

    async def _differs_again(self, found: Found, records: Sequence[RecordedAnswer]) -> bool:
        """Whether one that differed from kept answers did, or does, with another probe as well."""
        seeds = {record.seed for record in _one_of_each(records)[: len(found.comparisons)]}
        if len(seeds) > 1:
            return True
        others = [record for record in records if record.seed not in seeds]
        for record in others[:MAX_RECORDS_ASKED]:
            again = await self._with_record(found, found.plan.target, record)
            if again is not None and not again.agrees:
                found.comparisons.append(again)
                return True
        return False

    async def _records(self, plan: AuditPlan, candidate: Candidate) -> list[RecordedAnswer]:
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

    def _is_believed(self, worker_id: WorkerId) -> bool:
        record = self._state().trust.get(worker_id, NO_RECORD)
        return not record.is_quarantined and record.banned_reason is None

    async def _record(self, plan: AuditPlan, seed: str, answers: Mapping[WorkerId, Answer]) -> None:
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


def _direct(comparisons: _Compared, one: Candidate, other: Candidate) -> Comparison | None:
    """The comparison of the two."""
    return comparisons.get(frozenset((one.worker_id, other.worker_id)))


def _take_referee(found: Found, ruling: Ruling, comparisons: _Compared) -> None:
    found.referee = ruling.referee
    found.comparisons.extend(c for pair, c in comparisons.items() if ruling.referee in pair)


def _one_of_each(records: Sequence[RecordedAnswer]) -> list[RecordedAnswer]:
    """A kept answer of each of a few workers."""
    return list({record.worker_id: record for record in records}.values())[:MAX_RECORDS_ASKED]


def _verdict(compared_with: Sequence[Comparison]) -> AuditOutcome:
    """By kept answers: one that agrees clears a worker of what a single other one says, not of two."""
    if not compared_with:
        return "undecided"
    n_differ = sum(not one.agrees for one in compared_with)
    if n_differ == 0:
        return "passed"
    if n_differ == len(compared_with):
        return "failed"
    return "suspected"
