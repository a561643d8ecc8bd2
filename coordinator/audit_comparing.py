"""One audit: asks two workers, compares what they answer, and where they differ finds out which one is wrong."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from coordinator.audit_asking import Answer
from coordinator.audit_found import (
    Examiner,
    Found,
    ask,
    compare_all,
    not_shown_again,
    outcome_beside,
    outcome_of,
    why_none,
)
from coordinator.audit_kept import KeptAnswers, verdict
from coordinator.audit_repeating import Repeats
from coordinator.policy.audit_rules import (
    MAX_CONFIRMATIONS,
    N_AGAIN,
    RECORDED,
    Comparison,
    Ruling,
    accused,
    outcomes,
)
from coordinator.policy.audit_schedule import ANSWER_S, AuditPlan, Candidate
from protocol.audit_rest import AuditOutcome
from protocol.ids import WorkerId

MAX_SILENCES = 2
"""Answers, each waited for as long as one may take, that those may owe by whom a failure is to be confirmed."""
CONFIRMING_S = 3 * ANSWER_S
"""No fresh probe begins later: who takes long over each would hold one of the audits that may be under way."""

UNDECIDED = "nobody could say which of the two is wrong"

_Compared = dict[frozenset[str], Comparison]


class Comparer:
    """Carries audits out, as planned; `clock`: one that never steps."""

    def __init__(self, examiner: Examiner, kept: KeptAnswers, clock: Callable[[], float]) -> None:
        self._examiner = examiner
        self._kept = kept
        self._repeats = Repeats(examiner)
        self._clock = clock

    async def found(self, plan: AuditPlan) -> Found:
        """What comes of an audit."""
        return await (self._compared(plan) if plan.others else self._compared_with_records(plan))

    # -------------------------------------------------------------- two workers

    async def _compared(self, plan: AuditPlan) -> Found:
        target, partner = plan.target, plan.others[0]
        found, seed = Found(plan=plan, partner=partner.worker_id), secrets.token_hex(16)
        answers = await ask(self._examiner, found, seed, [target, partner])
        if not self._all_answered(found, answers):
            return found
        direct = _direct(compare_all(plan, [target, partner], answers), target, partner)
        assert direct is not None, "the plan names a partner that can be compared"
        found.comparisons.append(direct)
        if direct.agrees:
            found.outcome = found.partner_outcome = "passed"
            await self._kept.keep(plan, seed, answers)
            return found
        ruling, comparisons = await self._ruled(found, seed, answers, target, plan.others)
        if accused(ruling, target.worker_id, partner.worker_id):
            _take_referee(found, ruling, comparisons)
            ruling = await self._confirmed(found, ruling)
        found.outcome, found.partner_outcome = ruling.target, ruling.partner
        if ruling.target == ruling.partner == "suspected":
            found.words = UNDECIDED
            is_late = self._deadline()
            if not await self._repeats.settles(found, seed, answers, is_late) and not is_late():
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
            answers = {**answers, **await ask(self._examiner, found, seed, referees)}
        comparisons = compare_all(found.plan, [one, other, *referees], answers)
        ruled = outcomes(one.worker_id, other.worker_id, comparisons, [c.worker_id for c in referees])
        return ruled, comparisons

    async def _confirmed(self, found: Found, first: Ruling) -> Ruling:
        """A failure stands if enough of a few fresh probes show it again: rounding alone hardly does so thrice.

        Whom it was found by may fall silent: then the least trusted of those who decide stands in, as long as
        others are left to, who have to be trusted as far as whom they decide between.
        """
        everybody = (found.plan.target, *found.plan.others)
        name = accused(first, everybody[0].worker_id, everybody[1].worker_id)
        (failed,) = (c for c in everybody if c.worker_id == name)
        others = [c for c in everybody if c is not failed]
        n_asked = n_again = n_silent = 0
        is_late = self._deadline()
        while n_asked < MAX_CONFIRMATIONS and n_silent < MAX_SILENCES and found.asked[failed.worker_id] is None:
            if is_late():
                break
            n_asked, seed = n_asked + 1, secrets.token_hex(16)
            answers = await ask(self._examiner, found, seed, [failed, others[0]])
            direct = _direct(compare_all(found.plan, [failed, others[0]], answers), failed, others[0])
            if direct is None:
                n_silent += found.asked[others[0].worker_id] is not None
                others = [others[-1], *others[1:-1]] if len(others) > 2 else others
                continue
            if direct.agrees:
                continue
            if await self._is_ruled_so(found, seed, answers, failed, others):
                found.comparisons.append(direct)
                n_again += 1
                if n_again == N_AGAIN:
                    return first
            else:
                n_silent += any(found.asked.get(c.worker_id) is not None for c in others[1:])
        found.accused = failed.worker_id
        return not_shown_again(found, first, failed.worker_id, n_asked, has_given_up=n_silent >= MAX_SILENCES)

    async def _is_ruled_so(
        self,
        found: Found,
        seed: str,
        answers: Mapping[WorkerId, Answer],
        failed: Candidate,
        others: Sequence[Candidate],
    ) -> bool:
        again, comparisons = await self._ruled(found, seed, answers, failed, others)
        if again.target == "failed":
            _take_referee(found, again, comparisons)
        return again.target == "failed"

    def _deadline(self) -> Callable[[], bool]:
        """Whether it is too late for another fresh probe."""
        until_s = self._clock() + CONFIRMING_S
        return lambda: self._clock() >= until_s

    def _all_answered(self, found: Found, answers: Mapping[WorkerId, Answer]) -> bool:
        target, partner = found.plan.target, found.plan.others[0]
        found.outcome = outcome_beside(target, partner, answers)
        found.partner_outcome = outcome_beside(partner, target, answers)
        found.words = why_none(answers)
        return not found.words

    # -------------------------------------------------------------- kept answers

    async def _decided_by_records(self, found: Found) -> None:
        """Both are given the probes of earlier audits, whose answers are kept.

        Who fails by one of these has to fail by others of them, not by more that the two differ in: one that lies
        to all probes but the kept ones goes on to differ from an honest one for ever. Who is accused already isn't
        cleared by them.
        """
        both = (found.plan.target, found.plan.others[0])
        records = [await self._kept.for_one(found.plan, c) for c in both]
        checked = [await self._kept.compared(found, c, r) for c, r in zip(both, records, strict=True)]
        verdicts = [verdict(all_of_one) for all_of_one in checked]
        if set(verdicts) != {"passed", "failed"}:
            return
        found.comparisons.extend(c for all_of_one in checked for c in all_of_one)
        at = verdicts.index("failed")
        n_compared, is_late = len(checked[at]), self._deadline()
        if await self._kept.show_again(found, both[at], records[at], n_compared, is_late):
            found.referee, found.words = RECORDED, ""
            if found.accused == both[at].worker_id:
                found.accused = None
            elif found.accused is not None:
                verdicts[1 - at] = (found.outcome, found.partner_outcome)[1 - at]
        elif found.accused is not None:
            return
        else:
            verdicts = ["suspected", "suspected"]
            verdicts[at], why = _unshown(found, both[at])
            found.words = f"{UNDECIDED}: {why}"
        found.outcome, found.partner_outcome = verdicts

    async def _compared_with_records(self, plan: AuditPlan) -> Found:
        found = Found(plan=plan)
        records = await self._kept.for_one(plan, plan.target)
        found.comparisons = await self._kept.compared(found, plan.target, records)
        if found.comparisons:
            found.outcome = verdict(found.comparisons)
            found.partner = found.comparisons[0].other
            if found.outcome == "failed":
                n_compared, is_late = len(found.comparisons), self._deadline()
                if not await self._kept.show_again(found, plan.target, records, n_compared, is_late):
                    found.outcome, found.words = _unshown(found, plan.target)
        elif (error := found.asked.get(plan.target.worker_id)) is not None:
            found.partner, found.outcome = RECORDED, outcome_of(error)
            found.words = why_none({plan.target.worker_id: error})
        elif plan.n_busy:
            found.words = (
                f"the {plan.n_busy} others that hold them are loaded, or busy with audits; try again later"
            )
        else:
            await self._repeats.of_one(found, self._deadline())
        return found


def _unshown(found: Found, failed: Candidate) -> tuple[AuditOutcome, str]:
    """What is left of a failure by kept answers that too few of them show, and why."""
    error = found.asked[failed.worker_id]
    if error is None:
        return "suspected", f"fewer than {N_AGAIN + 1} kept probes showed it, so it may have been rounding"
    left: AuditOutcome = "unanswered" if outcome_of(error) == "unanswered" else "suspected"
    return left, f"asked again, {why_none({failed.worker_id: error})}"


def _direct(comparisons: _Compared, one: Candidate, other: Candidate) -> Comparison | None:
    """The comparison of the two."""
    return comparisons.get(frozenset((one.worker_id, other.worker_id)))


def _take_referee(found: Found, ruling: Ruling, comparisons: _Compared) -> None:
    found.referee = ruling.referee
    found.comparisons.extend(c for pair, c in comparisons.items() if ruling.referee in pair)
