"""How far an audit has come, and the comparisons that it makes of what workers answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from coordinator.audit_asking import Answer
from coordinator.audit_session import NoAnswerError
from coordinator.policy.audit_probe import Projection
from coordinator.policy.audit_rules import Comparison, Held, Ruling, compared, summed_up, unconfirmed
from coordinator.policy.audit_schedule import AuditPlan, Candidate
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.ids import WorkerId


class Examiner(Protocol):
    """Who asks workers."""

    async def answers(
        self, plan: AuditPlan, seed: str, candidates: Sequence[Candidate]
    ) -> Mapping[WorkerId, Answer]:
        """What each of them makes of the probe with this seed."""


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
    """Who was asked, and why it gave no answer the last time, if so."""
    n_asked: Counter[WorkerId] = field(default_factory=Counter)
    """How often: each probe takes as much."""
    accused: WorkerId | None = None
    """Who was found wrong by others, which fresh probes didn't confirm."""

    def take_answers(self, answers: Mapping[WorkerId, Answer]) -> None:
        """These were asked."""
        for worker_id, given in answers.items():
            self.asked[worker_id] = given if isinstance(given, NoAnswerError) else None
            self.n_asked[worker_id] += 1

    def proved(self, words: str) -> None:
        """Whom it accuses has failed after all."""
        if self.accused == self.plan.target.worker_id:
            self.outcome = "failed"
        else:
            self.partner_outcome = "failed"
        self.words = "; ".join(one for one in (self.words, words) if one)

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
        said = "; ".join(words for words in (summed_up(self.comparisons), self.words) if words)
        return f"audit of blocks {self.plan.blocks} of {self.plan.model.name}: {said}"


async def ask(
    examiner: Examiner, found: Found, seed: str, candidates: Sequence[Candidate]
) -> Mapping[WorkerId, Answer]:
    """What each of them makes of the probe; it counts as asked."""
    answers = await examiner.answers(found.plan, seed, candidates)
    found.take_answers(answers)
    return answers


Said = tuple[str, Held, Projection]
"""Who, what it holds the blocks in, and its answer."""


def comparison(plan: AuditPlan, one: Said, other: Said) -> Comparison | None:
    """Two answers to the same probe; None where they can't be compared."""
    allowed = plan.allowed(one[1], other[1])
    if allowed is None:
        return None
    return compared((one[0], one[2]), (other[0], other[2]), allowed)


def compare_all(
    plan: AuditPlan, candidates: Sequence[Candidate], answers: Mapping[WorkerId, Answer]
) -> dict[frozenset[str], Comparison]:
    """Every two that answered and can be compared."""
    table = [
        (c.worker_id, c.held, given)
        for c in candidates
        if not isinstance(given := answers[c.worker_id], NoAnswerError)
    ]
    pairs = ((one, other) for i, one in enumerate(table) for other in table[i + 1 :])
    return {frozenset((a[0], b[0])): c for a, b in pairs if (c := comparison(plan, a, b)) is not None}


def outcome_of(error: NoAnswerError) -> AuditOutcome:
    """What an audit says of who gave no answer."""
    return "unanswered" if error.failure in ("refused", "silent") else "undecided"


def outcome_beside(one: Candidate, other: Candidate, answers: Mapping[WorkerId, Answer]) -> AuditOutcome:
    """What an audit that came to nothing says of one of two.

    The same blocks aren't damaged where the other one computed them well; but float16 may overflow alone.
    """
    given, others = answers[one.worker_id], answers[other.worker_id]
    if not isinstance(given, NoAnswerError):
        return "undecided"
    is_narrower = one.held.weights == "float16" != other.held.weights
    if given.failure == "faulty" and not isinstance(others, NoAnswerError) and not is_narrower:
        return "unanswered"
    return outcome_of(given)


def why_none(answers: Mapping[WorkerId, Answer]) -> str:
    """Who gave no answer, and why, in words; empty if all did."""
    given: Iterable[tuple[WorkerId, Answer]] = answers.items()
    return "; ".join(f"{name} gave no answer: {e.words}" for name, e in given if isinstance(e, NoAnswerError))


def not_shown_again(found: Found, first: Ruling, failed: WorkerId, n_asked: int, *, has_given_up: bool) -> Ruling:
    """What is left of a failure that wasn't confirmed; the audit's words say why it wasn't."""
    if (error := found.asked[failed]) is not None:
        found.words = f"asked again, {why_none({failed: error})}"
        # suspicion counts once: who is silent after each wrong answer is to lose by each silence
        return unconfirmed(first, "unanswered" if outcome_of(error) == "unanswered" else "suspected")
    if has_given_up:
        silent = why_none({name: error for name, error in found.asked.items() if error is not None})
        found.words = f"asked again, {silent}; so nobody could show it of {failed} again"
        return unconfirmed(first)
    found.words = f"{n_asked} fresh probes didn't show it of {failed} as often again, so it may have been rounding"
    return unconfirmed(first)
