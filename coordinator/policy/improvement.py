"""Whether what is served should be placed anew: what the planner would choose, what that is worth, who would move.

Worth is modelled (`modelled`), by what the coordinator places for; who spreads gains by blocks that fewer hold, and
where each is held once, by shares that are more even. Of the plan only the moves count that its worth hangs on, and
only as far as they can be made while all that is served stays served (`moving`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain

from coordinator.policy.handover import Spans
from coordinator.policy.layouts import Layout, Served
from coordinator.policy.modelled import MAX_GIVEN_UP, ModelledSpeed
from coordinator.policy.moving import is_at_rest, reachable
from coordinator.policy.plan import planned_spans
from coordinator.policy.quantising import loses_bits
from coordinator.policy.state import ClusterState, Placement
from coordinator.policy.trimming import slowest_s, trimmed
from protocol.ids import ModelName, WorkerId

MAX_PLANNED_AGAIN = 4_000
"""Workers times blocks up to which a second plan is made: with 50 workers and 80 blocks each takes 0.8 s of CPU
time, with 200 the first alone 1.5 to 2.3 s."""

_LEAST_GAIN = 1.01
"""Less isn't worth a move even if an operator asks: it is in the noise of what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """Something better than what is held, or why there is nothing to move for."""

    gain: float
    """How many times as good it is modelled to be; endless if it serves a model of which blocks are missing now."""
    moves: Mapping[WorkerId, Spans] = field(default_factory=dict)
    """What those who change are to hold in the end; nobody if it isn't worth it, or can't be done."""
    reason: str

    @property
    def is_worth_it(self) -> bool:
        """Whether somebody is to move."""
        return bool(self.moves)


def improvement(state: ClusterState, *, is_asked: bool = False) -> Improvement:
    """What to move to; `is_asked`: for any gain, not only for one over the margin."""
    if why := _why_not_now(state):
        return Improvement(gain=1.0, reason=why)
    margin = _LEAST_GAIN if is_asked else state.settings.replan_margin
    best = _towards(state, margin, counts_head=True)
    if best.is_worth_it or best.gain < margin or not (is_asked or _can_plan_again(state)):
        return best
    # It can't be reached. Where anybody may be the last one, more workers can stay as they are.
    nearer = _towards(state, margin, counts_head=False)
    return nearer if nearer.is_worth_it else best


def _can_plan_again(state: ClusterState) -> bool:
    """Whether that takes a moment only; an operator who asks waits for it in any case."""
    n_blocks = sum(model.manifest.n_blocks for model in state.models.values())
    return len(state.workers) * n_blocks <= MAX_PLANNED_AGAIN


def _towards(state: ClusterState, margin: float, *, counts_head: bool) -> Improvement:
    held = _held(state)
    planned = planned_spans(state, state.settings.placement, counts_head=counts_head)
    wanted = _least_moved(state, held, planned) if state.settings.placement == "spread" else planned
    target = {w: spans for w, spans in wanted.items() if spans != held[w]}
    if loses_bits(chain.from_iterable(held.values()), chain.from_iterable(target.values())):
        return Improvement(gain=1.0, reason="what the planner would choose holds blocks in fewer bits than now")
    return _judged(state, held, target, margin)


def _least_moved(
    state: ClusterState, held: Mapping[WorkerId, Spans], planned: Mapping[WorkerId, Spans]
) -> Mapping[WorkerId, Spans]:
    """Parts of what is held, which nobody has to load, if they are about as even as what is planned."""
    kept = trimmed(state, held)
    if kept is None or slowest_s(state, kept) > slowest_s(state, planned) * state.settings.replan_margin:
        return planned
    return kept


def _why_not_now(state: ClusterState) -> str:
    if not state.models:
        return "no model is served"
    if state.moving is not None:
        cut = ", and go on once all are back after a restart" if state.moving.is_cut else ""
        return f"workers are being moved already{cut}: {state.moving.reason}"
    if state.changed_s is not None:
        return f"somebody came or went, or a model changed, and {state.settings.settle_s:g} s of quiet come first"
    if not is_at_rest(state):
        return "not everybody who holds blocks is here with all of them ready; it is looked at again once they are"
    return ""


def _judged(
    state: ClusterState, held: Mapping[WorkerId, Spans], target: Mapping[WorkerId, Spans], margin: float
) -> Improvement:
    now = Layout.of(state, held)
    then = Layout.of(state, {**held, **target})
    gain = _gain(state, now, then)
    if gain < margin:
        return Improvement(gain=gain, reason=f"{_percent(gain)}, which is under {_percent(margin, bare=True)}")
    if not then.keeps_replicas(now):
        return Improvement(gain=gain, reason=f"{_percent(gain)}, but blocks would have fewer replicas than wanted")
    moves = _possible(state, now, target)
    after = Layout.of(state, {**held, **moves})
    possible = _gain(state, now, after)
    if possible < margin:
        return Improvement(
            gain=gain,
            reason=f"{_percent(gain)}, but workers have too little memory to hold what they serve beside what they "
            f"would serve instead: without leaving blocks unserved for a while, {_percent(possible)} can be had, "
            f"and {_percent(margin, bare=True)} is asked for; more memory (--memory) or another worker helps",
        )
    return Improvement(gain=possible, moves=moves, reason=_words(now, after, possible))


def _held(state: ClusterState) -> dict[WorkerId, Spans]:
    return {w.worker_id: w.assignment.spans for w in state.workers.values() if w.can_be_assigned}


def _possible(state: ClusterState, now: Layout, target: Mapping[WorkerId, Spans]) -> Mapping[WorkerId, Spans]:
    """The moves that can be made, of those that the most hangs on; fewer if that costs next to nothing.

    Who isn't needed in the end may have to move first, so that others can.
    """

    def worth(moves: Mapping[WorkerId, Spans]) -> float:
        after = Layout.of(state, {**now.spans, **moves})
        return _gain(state, now, after) if after.keeps_replicas(now) else 0.0

    ways = [reachable(state, moves) for moves in (_needed(state, now, target), target)]
    best = max(ways, key=worth)
    fewer = reachable(state, _needed(state, now, best))
    return fewer if worth(fewer) >= worth(best) * (1 - MAX_GIVEN_UP) else best


def _gain(state: ClusterState, now: Layout, then: Layout) -> float:
    """How many times as good it is for all models, on the mean; nothing gained if one is given up, or much worse.

    That all are served comes before how well.
    """
    ratios = [_ratio(state.settings.placement, now.served[name], then.served[name]) for name in state.models]
    if math.inf in ratios and min(ratios) > 0.0:
        return math.inf
    is_fair = min(ratios) * state.settings.replan_margin >= 1.0
    return math.prod(ratios) ** (1 / len(ratios)) if is_fair else min(ratios)


def _ratio(placement: Placement, now: Served, then: Served) -> float:
    if then.speed is None:
        return 1.0 if now.speed is None else 0.0
    if now.speed is None:
        return math.inf
    if placement == "spread":
        if max(now.n_holders) == max(then.n_holders) == 1:  # there is no less to hold: what is left is how evenly
            return then.speed.tokens_per_s / now.speed.tokens_per_s
        return sum(now.n_holders) / sum(then.n_holders)
    return _worth(placement, then.speed) / _worth(placement, now.speed)


def _worth(placement: Placement, speed: ModelledSpeed) -> float:
    match placement:
        case "one-stream":
            return 1 / speed.step_s
        case "many-streams":
            return speed.tokens_per_s
        case "balance" | "spread":
            return math.sqrt(speed.tokens_per_s / speed.step_s)


def _needed(state: ClusterState, now: Layout, target: Mapping[WorkerId, Spans]) -> dict[WorkerId, Spans]:
    """The target without those whose staying as they are costs next to nothing, and no replica that is wanted."""
    moves, whole = dict(target), Layout.of(state, {**now.spans, **target})
    least, layout = _gain(state, now, whole) * (1 - MAX_GIVEN_UP), whole
    for worker_id in sorted(target):
        fewer = layout.changed({worker_id: now.spans[worker_id]})
        if fewer.keeps_replicas(whole) and _gain(state, now, fewer) >= least:
            layout = fewer
            del moves[worker_id]
    return moves


# ------------------------------------------------------------------ in words


def _percent(gain: float, *, bare: bool = False) -> str:
    percent = f"{100 * (gain - 1):.0f} %"
    if bare:
        return percent
    if math.isinf(gain):
        return "a model would be served of which blocks are missing"
    return f"gain {percent}" if gain >= 1 else f"the planner knows nothing better ({percent})"


def _words(now: Layout, then: Layout, gain: float) -> str:
    models = ((name, now.served[name], then.served[name]) for name in then.served)
    return "; ".join(
        [_percent(gain), *filter(None, (_model_words(then.state.settings.placement, *m) for m in models))]
    )


def _model_words(placement: Placement, name: ModelName, old: Served, new: Served) -> str:
    if new.speed is None:
        return ""
    if old.speed is None:
        return f"{name}: {1 / new.speed.step_s:.1f} tokens/s for one stream, where blocks are missing now"
    if placement == "spread" and sum(new.n_holders) != sum(old.n_holders):
        return f"{name}: its workers hold {sum(new.n_holders)} blocks in all instead of {sum(old.n_holders)}"
    return (
        f"{name}: {1 / new.speed.step_s:.1f} tokens/s for one stream instead of {1 / old.speed.step_s:.1f}, "
        f"{new.speed.tokens_per_s:.1f} for many instead of {old.speed.tokens_per_s:.1f}"
    )
