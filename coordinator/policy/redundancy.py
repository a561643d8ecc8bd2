"""Which blocks of a model fewer workers hold than it wants, and what to do about it, in words."""

from __future__ import annotations

from coordinator.policy.coverage import counts, ready_counts, runs, spans_of
from coordinator.policy.state import ClusterState, ModelRecord

_MAX_RUNS_IN_WORDS = 4


def too_few_replicas(state: ClusterState, model: ModelRecord) -> str:
    """What is short of the replicas that the model wants, and what helps; empty if nothing is."""
    n_wanted = model.n_replicas
    ready = ready_counts(state.workers.values(), model)
    if min(ready) >= n_wanted:
        return ""
    short = [(blocks, n) for blocks, n in runs([min(n, n_wanted) for n in ready]) if n < n_wanted]
    parts = [f"blocks {blocks} have {n}" for blocks, n in short[:_MAX_RUNS_IN_WORDS]]
    if len(short) > _MAX_RUNS_IN_WORDS:
        parts.append(f"and {len(short) - _MAX_RUNS_IN_WORDS} more such runs")
    return f"{n_wanted} replicas of {model.name} wanted, {', '.join(parts)}: {_what_helps(state, model)}"


def _what_helps(state: ClusterState, model: ModelRecord) -> str:
    if state.changed_s is not None:
        return f"more are given out once nothing has changed for {state.settings.settle_s:g} s"
    held = (
        span.blocks
        for worker in state.workers.values()
        if worker.counts_as_holder
        for span in spans_of(model, worker.assignment.spans)
    )
    if min(counts(held, model.manifest.n_blocks)) >= model.n_replicas:
        return "the others are being loaded, or their workers are away; wait"
    return (
        "no other worker has room for them beside what it serves; `worker join` on another machine, or ask for "
        f"fewer with `coord model replicas {model.name} N`"
    )
