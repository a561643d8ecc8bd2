"""How many audits it takes to quarantine a worker that is wrong on some of its steps, by the coordinator's rules.

The honest answers are real ones, on two machines; on a wrong step the positions of that step alone are replaced by
numbers of the same size, which is the least that a wrong step can do.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.audit_alarms import BFLOAT16, FLOAT32, PAIRS, Machine, asked, projections
from benchmarks.audit_answers import WHOLE, tiny_files
from coordinator.policy.audit_evidence import evidence_of
from coordinator.policy.audit_probe import N_SUMS, STEPS, Projection
from coordinator.policy.audit_repeats import OWN_REPEAT, Confirmation, contradictory
from coordinator.policy.audit_rules import (
    MAX_CONFIRMATIONS,
    N_AGAIN,
    Comparison,
    Held,
    Ruling,
    accused,
    allowed_difference,
    compared,
    is_dense,
    outcomes,
    unconfirmed,
)
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import TrustRecord, reviewed, with_evidence
from protocol.audit_rest import AuditInfo
from protocol.ids import ModelName, WorkerId

MOST_AUDITS = 20
N_PROBES = 64
CASES = (("llama", FLOAT32, BFLOAT16), ("mixtral", *reversed(PAIRS[8])))
"""A model, and what two honest workers and the third, which is wrong now and then, compute in; one without experts,
and one with them, where only the same precision is compared."""
BAD = "bad"


@dataclass(frozen=True, slots=True)
class Case:
    """Real answers to many probes, and how they are compared."""

    answers: Sequence[tuple[Projection, Projection]]
    """Of the honest two, who agree with one another, and of the third."""
    honest: Held
    held: Held
    is_dense: bool

    def comparisons(self, number: int, share: float, rng: Random) -> dict[frozenset[str], Comparison]:
        """Every two of the three, at one probe."""
        right, own = self.answers[number]
        given = {BAD: _spoilt(own, share, rng), "good": right, "third": right}
        return {
            frozenset((a, b)): self.compared(a, given[a], b, given[b]) for a, b in itertools.combinations(given, 2)
        }

    def compared(self, one: str, said: Projection, other: str, others: Projection) -> Comparison:
        """Two answers, by whose they are."""
        forms = [self.held if name in (BAD, OWN_REPEAT) else self.honest for name in (one, other)]
        allowed = allowed_difference(*forms, len(WHOLE), is_dense=self.is_dense)
        assert allowed is not None
        return compared((one, said), (other, others), allowed)


def simulation(n_trials: int, *, share: float = 0.1, seed: int = 1) -> str:
    """So many such workers of each case, in words."""
    lines = []
    for architecture, right, own in CASES:
        case = _case(architecture, right, own)
        for beside, audit in AUDITS.items():
            rng = Random(seed)  # noqa: S311 - printed, to be repeated
            needed = [audits_until_quarantine(case, share, rng, audit) for _ in range(n_trials)]
            n_in_time = sum(n <= MOST_AUDITS for n in needed)
            low, high = _interval(n_in_time, n_trials)
            lines.append(
                f"{architecture}, wrong on {share:.0%} of the steps beside {beside}, seed {seed}: {n_in_time} of "
                f"{n_trials} quarantined within {MOST_AUDITS} audits (95 % interval {low:.4f} to {high:.4f}); "
                f"median {statistics.median(needed):g}, most {max(needed)}"
            )
    return "\n".join(lines)


def _case(architecture: str, right: Machine, own: Machine) -> Case:
    with tiny_files(architecture) as files:
        given = []
        for machine in (right, own):
            source = files if machine.rounded is None else files.rounded(machine.rounded)
            stage = source.loaded(WHOLE, machine.dtype, machine.codes)
            assert stage is not None
            given.append(
                projections(stage, asked(stage, [f"seed {number}" for number in range(N_PROBES)])).tolist()
            )
        pairs = [(_projection(one), _projection(other)) for one, other in zip(*given, strict=True)]
        held = Held(weights=right.weights), Held(weights=own.weights)
        return Case(pairs, *held, is_dense=is_dense(files.architecture))


def _projection(rows: Sequence[Sequence[float]]) -> Projection:
    return tuple(map(tuple, rows))


Audit = Callable[[Case, float, Random], Ruling]
"""One audit of a worker that is wrong on such a share of its steps."""


def audits_until_quarantine(case: Case, share: float, rng: Random, audit: Audit) -> int:
    """Of one worker that is wrong on such a share of its steps."""
    record, state = TrustRecord(), ClusterState()
    for number in range(1, 100 * MOST_AUDITS):
        ruling = audit(case, share, rng)
        info = AuditInfo(
            at="", worker_id=WorkerId(BAD), model=ModelName("m"), blocks=WHOLE, partner="good",
            referee=ruling.referee, outcome=ruling.target, partner_outcome=ruling.partner, difference=None,
            allowed=None, reason="",
        )  # fmt: skip
        for seen in evidence_of(info, replace(state, trust={WorkerId(BAD): record}), 60.0 * number):
            if seen.worker_id == BAD:
                record = reviewed(with_evidence(record, seen.evidence, 60.0 * number), 60.0 * number)
        if record.is_quarantined:
            return number
    return 100 * MOST_AUDITS


def _with_a_third(case: Case, share: float, rng: Random) -> Ruling:
    first = _ruling(case, share, rng)
    failed = accused(first, BAD, "good")
    if not failed:
        return first
    again = (accused(_ruling(case, share, rng), BAD, "good") == failed for _ in range(MAX_CONFIRMATIONS))
    return first if sum(again) >= N_AGAIN else unconfirmed(first)


def _ruling(case: Case, share: float, rng: Random) -> Ruling:
    return outcomes(BAD, "good", case.comparisons(rng.randrange(len(case.answers)), share, rng), ["third"])


def _of_two_alone(case: Case, share: float, rng: Random) -> Ruling:
    """With nobody to decide, and no kept answers."""
    right, own = case.answers[rng.randrange(len(case.answers))]
    first = _spoilt(own, share, rng)
    if case.compared(BAD, first, "good", right).agrees:
        return Ruling(target="passed", partner="passed")
    if contradictory([case.compared(BAD, first, OWN_REPEAT, _spoilt(own, share, rng)), None]) is None:
        return Ruling(target="suspected", partner="suspected")
    confirmation = Confirmation()
    while not confirmation.is_over:
        _, own = case.answers[rng.randrange(len(case.answers))]
        repeat = case.compared(BAD, _spoilt(own, share, rng), OWN_REPEAT, _spoilt(own, share, rng))
        confirmation = confirmation.after(repeat)
    if not confirmation.is_shown:
        return Ruling(target="suspected", partner="undecided")
    return Ruling(target="failed", partner="undecided", referee=OWN_REPEAT)


AUDITS: Mapping[str, Audit] = {"one and a third": _with_a_third, "a single other one": _of_two_alone}
"""By who else holds the blocks."""


def _spoilt(projection: Projection, share: float, rng: Random) -> Projection:
    rows = list(projection)
    at = 0
    for n_tokens in STEPS:
        if rng.random() < share:
            for position in range(at, at + n_tokens):
                size = math.hypot(*rows[position]) / math.sqrt(N_SUMS)
                rows[position] = tuple(rng.gauss(0.0, size) for _ in range(N_SUMS))
        at += n_tokens
    return tuple(rows)


def _interval(n_hits: int, n_trials: int) -> tuple[float, float]:
    """Wilson's, 95 %."""
    z, share = 1.96, n_hits / n_trials
    middle = (share + z * z / (2 * n_trials)) / (1 + z * z / n_trials)
    half = z / (1 + z * z / n_trials) * math.sqrt(share * (1 - share) / n_trials + z * z / (4 * n_trials**2))
    return middle - half, min(1.0, middle + half)
