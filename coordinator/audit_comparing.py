"""One audit: asks two workers, compares what they answer, and where they differ finds out which one is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random

import structlog

from coordinator.audit_asking import Answer, Examiner
from coordinator.audit_session import NoAnswerError
from coordinator.audit_store import AuditStore, RecordedAnswer
from coordinator.policy.audit_probe import Projection
from coordinator.policy.audit_rules import OWN_RECORD, RECORDED, Comparison, Held, compared, is_dense, outcomes
from coordinator.policy.audit_schedule import TRUSTED_RANK, AuditPlan, Candidate
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import NO_RECORD
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.errors import StorageError
from protocol.ids import WorkerId

log = structlog.get_logger(__name__)

MAX_RECORDS_ASKED = 3
"""Kept answers, each of another worker, that one is compared with before it fails by them."""


@dataclass(slots=True, kw_only=True)
class Found:
    """How far an audit has come."""

    plan: AuditPlan
    partner: str = ""
    referee: str = ""
    outcome: AuditOutcome = "undecided"
    partner_outcome: AuditOutcome = "undecided"
    comparisons: list[Comparison] = field(default_factory=list)
    words: str = ""
    asked: dict[WorkerId, NoAnswerError | None] = field(default_factory=dict)
    """Who was asked, and why it gave no answer, if so."""

    def info(self, now_s: float) -> AuditInfo:
        """For operators."""
        direct = self.comparisons[0] if self.comparisons else None
        return AuditInfo(
            at=datetime.fromtimestamp(now_s, UTC).isoformat(timespec="seconds"),
            worker_id=self.plan.target.worker_id,
            model=self.plan.model.name,
            blocks=self.plan.blocks,
            partner=self.partner,
            referee=self.referee,
            outcome=self.outcome,
            partner_outcome=self.partner_outcome,
            difference=direct.difference if direct is not None else None,
            allowed=direct.allowed if direct is not None else None,
            reason=self._reason(),
        )

    def _reason(self) -> str:
        said = [c.words() for c in self.comparisons] + ([self.words] if self.words else [])
        return f"audit of blocks {self.plan.blocks} of {self.plan.model.name}: {'; '.join(said)}"


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
        comparisons = _compare_all(plan, [target, partner], answers)
        direct = comparisons[frozenset((target.worker_id, partner.worker_id))]
        found.comparisons.append(direct)
        if direct.agrees:
            found.outcome = found.partner_outcome = "passed"
            await self._record(plan, seed, answers)
            return found
        referees = [c for c in plan.others[1:] if c.rank >= max(target.rank, partner.rank)]
        if referees:
            answers |= await self._asked(found, seed, referees)
            comparisons = _compare_all(plan, [target, partner, *referees], answers)
        _decide(found, comparisons, [c.worker_id for c in referees])
        if found.outcome == "suspected":
            await self._decided_by_records(found)
        return found

    async def _asked(self, found: Found, seed: str, candidates: Sequence[Candidate]) -> dict[WorkerId, Answer]:
        answers = dict(await self._examiner.answers(found.plan, seed, candidates))
        for worker_id, given in answers.items():
            found.asked[worker_id] = given if isinstance(given, NoAnswerError) else None
        return answers

    def _all_answered(self, found: Found, answers: Mapping[WorkerId, Answer]) -> bool:
        given = answers[found.plan.target.worker_id]
        if isinstance(given, NoAnswerError):
            found.outcome = _outcome_of(given)
        given = answers[found.plan.others[0].worker_id]
        if isinstance(given, NoAnswerError):
            found.partner_outcome = _outcome_of(given)
        found.words = _why_none(answers)
        return not found.words

    # -------------------------------------------------------------- kept answers

    async def _decided_by_records(self, found: Found) -> None:
        """Both are given the probes of earlier audits, whose answers are kept."""
        plan, partner = found.plan, found.plan.others[0]
        checked = {c.worker_id: await self._with_records(found, c) for c in (plan.target, partner)}
        verdicts = {worker_id: _verdict(all_of_one) for worker_id, all_of_one in checked.items()}
        if set(verdicts.values()) != {"passed", "failed"}:
            return
        found.referee, found.words = RECORDED, ""
        found.comparisons.extend(c for all_of_one in checked.values() for c in all_of_one)
        found.outcome = verdicts[plan.target.worker_id]
        found.partner_outcome = verdicts[partner.worker_id]

    async def _compared_with_records(self, plan: AuditPlan) -> Found:
        found = Found(plan=plan)
        found.comparisons = await self._with_records(found, plan.target)
        if found.comparisons:
            found.outcome = _verdict(found.comparisons)
            found.partner = found.comparisons[0].other
        elif (error := found.asked.get(plan.target.worker_id)) is not None:
            found.partner, found.outcome = RECORDED, _outcome_of(error)
            found.words = _why_none({plan.target.worker_id: error})
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

    async def _with_records(self, found: Found, candidate: Candidate) -> list[Comparison]:
        """One worker against answers that are kept: against one; if it differs, against other workers' too."""
        compared_with: list[Comparison] = []
        for record in await self._records(found.plan, candidate):
            given = (await self._asked(found, record.seed, [candidate]))[candidate.worker_id]
            if isinstance(given, NoAnswerError):
                break
            name = OWN_RECORD if record.worker_id == candidate.worker_id else RECORDED
            one = _comparison(
                found.plan, (candidate.worker_id, candidate.held, given), (name, record.held, record.projection)
            )
            if one is not None:
                compared_with.append(one)
                if one.agrees:
                    break
        return compared_with

    async def _records(self, plan: AuditPlan, candidate: Candidate) -> list[RecordedAnswer]:
        """One of each of a few workers, in any order; its own only where there are no others'.

        What a worker once said counts no longer when it is quarantined or banned itself.
        """
        recorded = list(await self._store.recorded(plan.model.revision, plan.blocks))
        self._rng.shuffle(recorded)
        one_of_each = {
            one.worker_id: one
            for one in recorded
            if plan.allowed(candidate.held, one.held) is not None and self._is_believed(one.worker_id)
        }
        own = one_of_each.pop(candidate.worker_id, None)
        if not one_of_each:
            return [own] if own is not None else []
        return list(one_of_each.values())[:MAX_RECORDS_ASKED]

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


def _decide(found: Found, comparisons: Mapping[frozenset[str], Comparison], referees: Sequence[str]) -> None:
    ruled = outcomes(found.plan.target.worker_id, found.partner, comparisons, referees)
    found.outcome, found.partner_outcome, found.referee = ruled.target, ruled.partner, ruled.referee
    found.comparisons.extend(c for pair, c in comparisons.items() if ruled.referee and ruled.referee in pair)
    if found.outcome == "suspected":
        found.words = "nobody could say which of the two is wrong"


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


def _compare_all(
    plan: AuditPlan, candidates: Sequence[Candidate], answers: Mapping[WorkerId, Answer]
) -> dict[frozenset[str], Comparison]:
    """Every two that answered and can be compared."""
    table = [
        (c.worker_id, c.held, given)
        for c in candidates
        if not isinstance(given := answers[c.worker_id], NoAnswerError)
    ]
    pairs = ((one, other) for i, one in enumerate(table) for other in table[i + 1 :])
    return {frozenset((a[0], b[0])): c for a, b in pairs if (c := _comparison(plan, a, b)) is not None}


_Said = tuple[str, Held, Projection]
"""Who, what it holds the blocks in, and its answer."""


def _comparison(plan: AuditPlan, one: _Said, other: _Said) -> Comparison | None:
    allowed = plan.allowed(one[1], other[1])
    if allowed is None:
        return None
    dense = is_dense(plan.model.manifest.architecture)
    return compared((one[0], one[2]), (other[0], other[2]), allowed, is_dense=dense)


def _outcome_of(error: NoAnswerError) -> AuditOutcome:
    return "unanswered" if error.failure in ("refused", "silent") else "undecided"


def _why_none(answers: Mapping[WorkerId, Answer]) -> str:
    given: Iterable[tuple[WorkerId, Answer]] = answers.items()
    return "; ".join(f"{name} gave no answer: {e.words}" for name, e in given if isinstance(e, NoAnswerError))
