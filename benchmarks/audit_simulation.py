"""How many audits it takes to quarantine a worker that is wrong on some of its steps, by the coordinator's rules.

The honest answers are real ones, on two machines; on a wrong step the positions of that step alone are replaced by
numbers of the same size, which is the least that a wrong step can do.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from benchmarks.audit_alarms import BFLOAT16, FLOAT32, PAIRS, Machine, asked, projections
from benchmarks.audit_answers import WHOLE, tiny_files
from coordinator.policy.audit_evidence import evidence_of
from coordinator.policy.audit_probe import N_SUMS, STEPS, Projection
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
        held = {BAD: self.held, "good": self.honest, "third": self.honest}
        found = {}
        for a, b in itertools.combinations(given, 2):
            allowed = allowed_difference(held[a], held[b], len(WHOLE), is_dense=self.is_dense)
            assert allowed is not None
            found[frozenset((a, b))] = compared((a, given[a]), (b, given[b]), allowed)
        return found


def simulation(n_trials: int, *, share: float = 0.1, seed: int = 1) -> str:
    """So many such workers of each case, in words."""
    lines = []
    for architecture, right, own in CASES:
        case, rng = _case(architecture, right, own), Random(seed)  # noqa: S311 - printed, to be repeated
        needed = [audits_until_quarantine(case, share, rng) for _ in range(n_trials)]
        n_in_time = sum(n <= MOST_AUDITS for n in needed)
        low, high = _interval(n_in_time, n_trials)
        lines.append(
            f"{architecture}, wrong on {share:.0%} of the steps, seed {seed}: {n_in_time} of {n_trials} "
            f"quarantined within {MOST_AUDITS} audits (95 % interval {low:.4f} to {high:.4f}); "
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


def audits_until_quarantine(case: Case, share: float, rng: Random) -> int:
    """Of one worker that is wrong on such a share of its steps."""
    record, state = TrustRecord(), ClusterState()
    for number in range(1, 100 * MOST_AUDITS):
        ruling = _audit(case, share, rng)
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


def _audit(case: Case, share: float, rng: Random) -> Ruling:
    first = _ruling(case, share, rng)
    failed = accused(first, BAD, "good")
    if not failed:
        return first
    again = (accused(_ruling(case, share, rng), BAD, "good") == failed for _ in range(MAX_CONFIRMATIONS))
    return first if sum(again) >= N_AGAIN else unconfirmed(first)


def _ruling(case: Case, share: float, rng: Random) -> Ruling:
    return outcomes(BAD, "good", case.comparisons(rng.randrange(len(case.answers)), share, rng), ["third"])


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
