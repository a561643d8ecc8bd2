"""Whether what is served will be placed anew, and why or why not; and how far that is: in words, for operators."""

from __future__ import annotations

from coordinator.policy.cut_moves import awaited_words, waiting_words
from coordinator.policy.handover import Spans
from coordinator.policy.improvement import Improvement, improvement
from coordinator.policy.moving import pending, unready_holders
from coordinator.policy.standing import listed
from coordinator.policy.state import ClusterState
from protocol.ids import WorkerId


def outlook(state: ClusterState, now_s: float) -> str:
    """Whether and why the coordinator will or won't move to what it would place if nothing were placed yet."""
    if under_way := moving_words(state):
        return under_way
    found = improvement(state)
    if not found.is_worth_it:
        return f"Nothing is moved: {found.reason}"
    return f"{_when(state, now_s)}: {found.reason}. It moves {_who(found)}"


def moving_words(state: ClusterState) -> str:
    """How far a move is: who loads what, why, and who is next; empty if there is none."""
    if state.moving is None:
        return ""
    target, workers = state.moving.target, state.workers
    left = pending(state, target)
    here = {w: s for w, s in target.items() if w in workers and w not in left}
    loading = {w: s for w, s in here.items() if len(workers[w].ready) < len(s)}
    n_done = len(here) - len(loading)
    parts = [f"Placed anew, {n_done} of {len(target)} workers done: {state.moving.reason}"]
    if state.moving.is_cut:
        parts.insert(0, waiting_words(state))
    if loading:
        parts.append(f"now {_workers_words(loading)}")
    if left:
        parts.append(f"then {_workers_words(left)}")
    if not (left or loading or state.moving.is_cut):
        parts.append(_end_words(state))
    return "; ".join(parts)


def _end_words(state: ClusterState) -> str:
    """What a move of which all is done still waits for."""
    awaited = [awaited_words(worker) for worker in unready_holders(state)]
    if awaited:
        return f"it ends once all who hold blocks have them ready, and waits for {listed(awaited)}"
    return "it ends in a moment"


def _when(state: ClusterState, now_s: float) -> str:
    if state.settings.replan == "off":
        return "`coord plan --apply` would move blocks, nothing else does (--replan off)"
    if state.improve_s is None:
        return "Blocks are moved once all has settled"
    return f"Blocks are moved in {max(0.0, state.improve_s - now_s):.0f} s if nothing changes until then"


def _who(found: Improvement) -> str:
    return _workers_words(dict(found.moves))


def _workers_words(spans: dict[WorkerId, Spans]) -> str:
    return listed([f"{worker_id} to {_spans_words(own)}" for worker_id, own in sorted(spans.items())])


def _spans_words(spans: Spans) -> str:
    return " and ".join(f"{span.blocks} of {span.model}" for span in spans) or "nothing"
