"""How far what two workers make of the same probe may differ, and who is wrong when it differs by more. Pure.

The difference of two projections at a position is the length of their difference over the longer of the two: 0
for equal, about 1.4 for unrelated ones. An audit goes by the middle one of all positions, which other weights
raise, and by the largest, which a single wrong step does. A few positions may differ at will: models with experts
choose them by comparing nearly equal numbers, so that a rounding sends a token another way now and then (there only
workers of the same precision are compared); and all large models give some tokens activations a thousand times as
large as others (Sun et al. 2024): how large those of a token near the beginning are may hang on a rounding, too.
Since rounding now and then makes honest answers differ by more than any tolerance that still finds cheats, nobody
fails by one probe, nor by two: `N_AGAIN` fresh ones have to show it again. Where the tolerances come from: decision
0016.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.policy.audit_probe import Projection
from coordinator.policy.state import WorkerRecord
from protocol.audit_rest import AuditOutcome
from protocol.control_messages import SpanAssignment
from protocol.messages import KvPrecision, WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """How far two honest answers may be apart."""

    middle: float
    """In the middle one of all positions."""
    stray: float
    """In the worst position that counts."""
    n_stray: int = 0
    """How many positions, the worst ones, don't count."""


DENSE = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3", "olmo2", "gpt2", "gptneox", "bloom", "falcon",
    "cohere", "granite", "smollm3", "opt",
)  # fmt: skip
"""Architectures without experts, as their class begins (`Qwen3ForCausalLM`); any other may have some."""
N_STRAY = 4
"""Positions of an audit that may differ at will where there are experts."""
N_ROUNDED = 2
"""Likewise without experts, where numbers are rounded to 16 bits or fewer."""

DENSE_TOLERANCES: Mapping[WeightFormat, Tolerance] = {
    "float32": Tolerance(middle=0.001, stray=0.01),
    "float16": Tolerance(middle=0.0065, stray=0.03, n_stray=N_ROUNDED),
    "bfloat16": Tolerance(middle=0.05, stray=0.4, n_stray=N_ROUNDED),
    "int8": Tolerance(middle=0.12, stray=0.65, n_stray=N_ROUNDED),
    "int4": Tolerance(middle=0.12, stray=0.65, n_stray=N_ROUNDED),
}
"""By what weights are held in, the coarser of two: what is allowed up to `BASE_DEPTH` blocks. Between int4 and
anything else honest workers differ by half of all that there is, so only int4 is compared with int4."""
EXPERT_TOLERANCES: Mapping[WeightFormat, Tolerance] = {
    "float32": Tolerance(middle=0.001, stray=0.01, n_stray=N_STRAY),
    "float16": Tolerance(middle=0.5, stray=0.9, n_stray=N_STRAY),
    "bfloat16": Tolerance(middle=0.5, stray=0.9, n_stray=N_STRAY),
    "int8": Tolerance(middle=0.5, stray=0.9, n_stray=N_STRAY),
    "int4": Tolerance(middle=0.5, stray=0.9, n_stray=N_STRAY),
}
"""Likewise where there are experts, among workers of the same precision. A token that goes another way differs as
much in float16 as in bfloat16: only how often it does depends on the rounding."""
KV_TOLERANCE = Tolerance(middle=0.08, stray=0.4, n_stray=N_ROUNDED)
"""At least this where one keeps keys and values in 8 bits."""
BASE_DEPTH = 4
DEPTH_POWER = 0.25
"""Beyond `BASE_DEPTH` tolerances grow with this power of the number of blocks."""
MOST_ALLOWED = 0.9
"""Zeros differ by 1: beyond this nothing could be told."""
N_AGAIN = 2
"""How many fresh probes have to show again what failed, so three in all."""
MAX_CONFIRMATIONS = 16
"""Among how many. Honest workers that differ by rounding in a share p of probes fail in 120 p^3 of audits at most
(120 pairs among sixteen); of what 10 % of wrong steps show, in a quarter of the probes and more, nine in ten are
confirmed."""

RECORDED = "recorded"
"""In place of a worker: an answer of another one that was kept of an earlier audit."""
OWN_RECORD = "own record"
"""Likewise an answer of its own: differing from it says as much, agreeing with oneself nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What a worker's answers are rounded by."""

    weights: WeightFormat
    kv: KvPrecision | None = None

    def __str__(self) -> str:
        return self.weights + ("" if self.kv is None else f", caches in {self.kv}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two answers to the same probe."""

    one: str
    other: str
    difference: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether they are the same as far as their precisions let one see."""
        return self.difference <= self.allowed

    def words(self) -> str:
        """For people."""
        which = f"the projections of {self.one} and {self.other} differ by {self.difference:.3g}"
        return f"{which}, {self.allowed:.3g} allowed"


def summed_up(comparisons: Iterable[Comparison]) -> str:
    """All of an audit's comparisons for people: of each two the furthest apart, those that differ first."""
    pairs: dict[frozenset[str], list[Comparison]] = {}
    for each in comparisons:
        pairs.setdefault(frozenset((each.one, each.other)), []).append(each)
    differing = [found for found in pairs.values() if not all(each.agrees for each in found)]
    agreeing = [_furthest(found) for found in pairs.values() if found not in differing]
    if not differing:
        return "; ".join(each.words() for each in agreeing)
    return "; ".join([*map(_difference_words, differing), *(f"{c.one} and {c.other} agree" for c in agreeing)])


def _difference_words(found: Sequence[Comparison]) -> str:
    n_apart = sum(not each.agrees for each in found)
    times = f" ({n_apart} of {len(found)} probes)" if len(found) > 1 else ""
    return _furthest(found).words() + times


def _furthest(found: Sequence[Comparison]) -> Comparison:
    return max(found, key=lambda each: each.difference - each.allowed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruling:
    """What came of an audit of two."""

    target: AuditOutcome
    partner: AuditOutcome
    referee: str = ""
    """Who decided between them."""


def held_by(worker: WorkerRecord, span: SpanAssignment) -> Held | None:
    """What the worker holds the span in; None while it hasn't said what device it has."""
    device = worker.device
    if device is None:
        return None
    weights: WeightFormat = span.quantization or device.held_as
    kv = device.kv_precision if device.kv_precision != device.precision else None
    return Held(weights=weights, kv=kv)


def is_dense(architecture: str) -> bool:
    """Whether a model of this architecture has no experts."""
    name = architecture.lower()
    return any(name in (known, f"{known}forcausallm", f"{known}lmheadmodel") for known in (*DENSE, "gemma3text"))


def allowed_difference(one: Held, other: Held, n_blocks: int, *, is_dense: bool) -> Tolerance | None:
    """How far two honest answers may differ; None where they can't be compared."""
    is_alike = one == other
    if not is_alike and (not is_dense or "int4" in (one.weights, other.weights)):
        return None
    table = DENSE_TOLERANCES if is_dense else EXPERT_TOLERANCES
    parts = [table[one.weights], table[other.weights]]
    if "int8" in (one.kv, other.kv):
        parts.append(KV_TOLERANCE if is_dense else EXPERT_TOLERANCES["bfloat16"])
    deeper = max(1.0, n_blocks / BASE_DEPTH) ** DEPTH_POWER
    return Tolerance(
        middle=min(MOST_ALLOWED, deeper * max(part.middle for part in parts)),
        stray=min(MOST_ALLOWED, deeper * max(part.stray for part in parts)),
        n_stray=max(part.n_stray for part in parts),
    )


def compared(one: tuple[str, Projection], other: tuple[str, Projection], allowed: Tolerance) -> Comparison:
    """Two answers, each with whose it is; of its two measures the comparison shows the one that is further off."""
    middle, stray = measures(one[1], other[1], allowed.n_stray)
    shown = (middle, allowed.middle) if middle * allowed.stray > stray * allowed.middle else (stray, allowed.stray)
    return Comparison(one=one[0], other=other[0], difference=shown[0], allowed=shown[1])


def measures(one: Projection, other: Projection, n_stray: int) -> tuple[float, float]:
    """How far two answers differ in the middle one of all positions, and in the worst but `n_stray`."""
    apart = sorted((_apart(a, b) for a, b in zip(one, other, strict=True)), reverse=True)
    return apart[len(apart) // 2], apart[n_stray]


def outcomes(
    target: str, partner: str, comparisons: Mapping[frozenset[str], Comparison], referees: Sequence[str]
) -> Ruling:
    """What the comparisons say of two workers; pairs that couldn't be compared are missing.

    Two that agree have passed. When they don't, referees decide that agree with one of them and not with the other,
    if they are all of one mind: else one accomplice among them would be enough to have an honest worker fail.
    """
    if comparisons[frozenset((target, partner))].agrees:
        return Ruling(target="passed", partner="passed")
    votes: dict[str, bool] = {}
    for referee in referees:
        with_target = comparisons.get(frozenset((target, referee)))
        with_partner = comparisons.get(frozenset((partner, referee)))
        if with_target is None or with_partner is None or with_target.agrees == with_partner.agrees:
            continue
        votes[referee] = with_target.agrees
    if len(set(votes.values())) != 1:
        return Ruling(target="suspected", partner="suspected")
    referee, is_for_target = next(iter(votes.items()))
    if is_for_target:
        return Ruling(target="passed", partner="failed", referee=referee)
    return Ruling(target="failed", partner="passed", referee=referee)


def accused(ruling: Ruling, target: str, partner: str) -> str:
    """Who failed, if anybody did."""
    return target if ruling.target == "failed" else partner if ruling.partner == "failed" else ""


def unconfirmed(ruling: Ruling, left: AuditOutcome = "suspected") -> Ruling:
    """What is `left` of a failure that no fresh probe showed again, of the same worker."""
    return replace(
        ruling,
        target=left if ruling.target == "failed" else ruling.target,
        partner=left if ruling.partner == "failed" else ruling.partner,
    )


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    longest = max(math.hypot(*one), math.hypot(*other))
    apart = math.dist(one, other)
    if not math.isfinite(longest) or not math.isfinite(apart):
        return 2.0
    return apart / longest if longest > 0.0 else 0.0
