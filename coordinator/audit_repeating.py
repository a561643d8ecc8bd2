"""Asking workers the very same probe twice, to find who contradicts itself (`policy.audit_repeats`)."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence

from coordinator.audit_asking import Answer
from coordinator.audit_found import Examiner, Found, ask, comparison, outcome_of, why_none
from coordinator.audit_session import NoAnswerError
from coordinator.policy.audit_repeats import OWN_REPEAT, Confirmation, contradictory
from coordinator.policy.audit_rules import Comparison
from coordinator.policy.audit_schedule import AuditPlan, Candidate
from protocol.audit_rest import AuditOutcome
from protocol.ids import WorkerId

IsLate = Callable[[], bool]

ALONE = (
    "no other worker holds them in a form that can be compared, and no answer of an earlier audit is kept; asked "
    "the same twice, it agrees with itself; a second worker that holds them makes audits possible that show more"
)


class Repeats:
    """Has workers asked twice: one after the other, so that one batch can't spoil both answers alike."""

    def __init__(self, examiner: Examiner) -> None:
        self._examiner = examiner

    async def settles(self, found: Found, seed: str, answers: Mapping[WorkerId, Answer], is_late: IsLate) -> bool:
        """Whether one of two that differ fails by contradicting itself.

        Who does so too seldom for that is accused, and kept answers may still say who is wrong: else an accomplice,
        or whoever is wrong always, would get round them so. Who gives no second answer hasn't shown anything by
        that, as its partner could flood it just then.
        """
        both = (found.plan.target, found.plan.others[0])
        repeats = await self._again(found, seed, answers, both)
        found.comparisons.extend(one for one in repeats if one is not None)
        at = contradictory(repeats)
        verdicts = [_left(found, c, one, is_settled=at is not None) for c, one in zip(both, repeats, strict=True)]
        if at is not None:
            verdicts[at] = await self._confirmed(found, both[at], is_late)
        elif silent := why_none({c.worker_id: error for c in both if (error := found.asked[c.worker_id])}):
            found.words += f"; asked the same again, {silent}"
        found.outcome, found.partner_outcome = verdicts
        return "failed" in verdicts

    async def of_one(self, found: Found, is_late: IsLate) -> None:
        """One that nothing else can be compared with."""
        target, seed = found.plan.target, secrets.token_hex(16)
        repeat = await self._twice(found, seed, target)
        found.partner = OWN_REPEAT
        if repeat is None:
            error = found.asked[target.worker_id]
            assert error is not None, "it can be compared with itself"
            found.outcome, found.words = outcome_of(error), why_none({target.worker_id: error})
            return
        found.comparisons.append(repeat)
        if repeat.agrees:
            found.words = ALONE
        else:
            found.outcome = await self._confirmed(found, target, is_late)

    async def _confirmed(self, found: Found, failed: Candidate, is_late: IsLate) -> AuditOutcome:
        """A failure, if fresh probes show again that it contradicts itself; else suspicion, and an accusation."""
        so_far = Confirmation()
        while not so_far.is_over and not is_late():
            repeat = await self._twice(found, secrets.token_hex(16), failed)
            if repeat is None:
                break
            so_far = so_far.after(repeat)
            if not repeat.agrees:
                found.comparisons.append(repeat)
        if so_far.is_shown:
            found.referee, found.words = OWN_REPEAT, ""
            return "failed"
        found.accused = failed.worker_id
        if (error := found.asked[failed.worker_id]) is not None:
            found.words = f"asked again, {why_none({failed.worker_id: error})}"
            return "unanswered" if outcome_of(error) == "unanswered" else "suspected"
        found.words = (
            f"{so_far.n_fresh} fresh probes, each asked twice, didn't show as often again that "
            f"{failed.worker_id} contradicts itself, so it may have been rounding"
        )
        return "suspected"

    async def _twice(self, found: Found, seed: str, candidate: Candidate) -> Comparison | None:
        first = await ask(self._examiner, found, seed, [candidate])
        if isinstance(first[candidate.worker_id], NoAnswerError):
            return None
        (repeat,) = await self._again(found, seed, first, [candidate])
        return repeat

    async def _again(
        self, found: Found, seed: str, answers: Mapping[WorkerId, Answer], candidates: Sequence[Candidate]
    ) -> list[Comparison | None]:
        second = await ask(self._examiner, found, seed, candidates)
        return [_with_itself(found.plan, c, answers[c.worker_id], second[c.worker_id]) for c in candidates]


def _with_itself(plan: AuditPlan, candidate: Candidate, one: Answer, other: Answer) -> Comparison | None:
    if isinstance(one, NoAnswerError) or isinstance(other, NoAnswerError):
        return None
    return comparison(plan, (candidate.worker_id, candidate.held, one), (OWN_REPEAT, candidate.held, other))


def _left(found: Found, candidate: Candidate, repeat: Comparison | None, *, is_settled: bool) -> AuditOutcome:
    """What is said of one of two that differ, beside what is found of one that contradicts itself."""
    error = found.asked[candidate.worker_id]
    if error is not None and outcome_of(error) == "unanswered":
        return "unanswered"
    return "undecided" if is_settled and (repeat is None or repeat.agrees) else "suspected"
