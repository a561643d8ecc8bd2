"""Workers whose clocks went wrong after they had joined: what their heartbeats tell of it, and what follows. Pure.

A worker judges by its own clock whether a ticket has expired. Where that is ahead by about as much as tickets live
it lets nobody in, so routes avoid it and others are given its blocks as well. Behind, tickets are good there for
longer than they should be, which is said.

Who tells the time and who is told to may fight over a clock, so that it is right and wrong by turns. Routes go by
what it says now; placement has it shut out from the first wrong time until it has been right for a while.
"""

from __future__ import annotations

import math
from dataclasses import replace

from coordinator.policy.changes import Change
from coordinator.policy.giving_out import all_placed
from coordinator.policy.placement import take_overs
from coordinator.policy.state import TICKET_LIFE_S, ClusterState, WorkerRecord
from protocol.handshake import MAX_CLOCK_SKEW_S

_STEP_S = 10.0
"""What is told apart: a clock that is wrong is so by minutes, and each change is shown to operators."""
STEADY_S = 30.0
"""A clock that let nobody in has to be right for so long before that is news to placement: it waits for quiet."""
_WAS_WRONG = (
    f"its clock was wrong a moment ago: it is given new blocks once that has been right for {STEADY_S:.0f} s; if "
    "it goes wrong again and again, two programs set it (one NTP service is enough)"
)


def clock_said(change: Change, worker: WorkerRecord) -> Change:
    """What follows from a heartbeat that arrived now; it is in the worker's record already."""
    after = replace(worker, clock_offset_s=_offset_s(worker, change.now_s))
    if after.takes_no_tickets:
        after = replace(after, right_since_s=None)
        is_said = worker.is_doubted and worker.takes_no_tickets
        return change.with_worker(after) if is_said else _shut_out(change, after)
    if worker.takes_no_tickets:
        after = replace(after, right_since_s=change.now_s)
    if after.right_since_s is not None and not 0 <= change.now_s - after.right_since_s < STEADY_S:
        is_doubted = worker.is_doubted and worker.kept_until_s is not None
        return change.with_worker(replace(after, right_since_s=None, is_doubted=is_doubted)).to_place()
    return change if after == worker else change.with_worker(after)


def clock_note(state: ClusterState, worker: WorkerRecord) -> str:
    """What is wrong with its clock, what that does, and what to do about it; empty if it is right."""
    if worker.presence != "here":
        return ""
    was_wrong = "" if worker.right_since_s is None else _WAS_WRONG
    if not worker.clock_offset_s:
        return was_wrong
    return "; ".join(filter(None, (was_wrong, clock_words(worker), _all_say_so(state))))


def clock_words(worker: WorkerRecord) -> str:
    """The same of a worker whose clock is wrong, by itself."""
    offset_s = worker.clock_offset_s
    how_far = f"{abs(offset_s):,.0f} s {'ahead of' if offset_s > 0 else 'behind'} the coordinator's"
    if offset_s < 0:
        follows = "tickets are good there for so much longer"
    elif worker.takes_no_tickets:
        follows = (
            f"tickets, which live {TICKET_LIFE_S:,.0f} s, have expired there or will in a moment, so no new "
            "sessions go there and others with room are given its blocks as well"
        )
    else:
        follows = f"its sessions end after {TICKET_LIFE_S - offset_s:,.0f} s"
    return (
        f"its clock is {how_far}: {follows}, and it can't join again ({MAX_CLOCK_SKEW_S:.0f} s are allowed); set "
        "the clock that is wrong (NTP keeps it right)"
    )


def _offset_s(worker: WorkerRecord, now_s: float) -> float:
    said_s = worker.heartbeat.time_s if worker.heartbeat is not None else 0.0
    offset_s = said_s - now_s
    if not said_s or not math.isfinite(offset_s) or abs(offset_s) <= MAX_CLOCK_SKEW_S:
        return 0.0
    return _STEP_S * round(offset_s / _STEP_S)


def _shut_out(change: Change, worker: WorkerRecord) -> Change:
    change = change.with_worker(replace(worker, is_doubted=True)).stopped_moving("the clock of a worker went wrong")
    return all_placed(change, take_overs(change.state))


def _all_say_so(state: ClusterState) -> str:
    if not state.all_clocks:  # asked of each worker, and the same for all
        here = [one for one in state.workers.values() if one.presence == "here"]
        n_wrong = sum(one.clock_offset_s != 0.0 for one in here)
        says_so = f"all {n_wrong} workers say so, so it is probably the coordinator's clock that is wrong"
        state.all_clocks.append(says_so if 2 <= len(here) == n_wrong else "")
    return state.all_clocks[0]
