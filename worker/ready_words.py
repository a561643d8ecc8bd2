"""What a worker says of a loaded span: what it is held in, and which options do nothing for it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from protocol.control_messages import SpanAssignment
from worker.steps import Drafting, LoadedSpan
from worker.wire import WireChoice, why_exact

_USUAL_ANSWER = 256
"""`client generate` asks for so many tokens of an answer unless told otherwise, a prompt comes on top: less is
hardly a session, unless the model's own context is shorter."""


def ready_lines(
    span: SpanAssignment, loaded: LoadedSpan, *, device: str, wire: WireChoice, kv_budget_bytes: int
) -> list[str]:
    """What people are told once the span can be used; what was asked for in vain has lines of its own."""
    held = f"ready: blocks {span.blocks} of {span.model} in {loaded.key.held_as} on {device}"
    words = (held, caches_of(loaded, kv_budget_bytes), note_of(loaded, wire))
    return [
        "; ".join(filter(None, words)),
        *(f"WARNING: {line}" for line in _in_vain(loaded, wire, kv_budget_bytes)),
    ]


def note_of(loaded: LoadedSpan, wire: WireChoice, exact_because: Iterable[str] = ()) -> str:
    """What operators should know of the span, in `coord status` too; mostly nothing.

    `exact_because`: why hidden states go to some neighbours as computed (`wire.why_exact_to`).
    """
    notes = []
    if loaded.unbatched_because:
        notes.append(f"its sessions run one at a time: {loaded.unbatched_because}")
    if loaded.unpacked_because:
        notes.append(f"slower than it might be: {loaded.unpacked_because}")
    if loaded.screening.is_on:
        notes.append("its head looks closely at few tokens")
    if loaded.screening.off_because:
        notes.append(f"its head computes every token's logit: {loaded.screening.off_because}")
    if loaded.is_compiled:
        notes.append("compiled for single streams")
    if loaded.uncompiled_because:
        notes.append(f"isn't compiled: {loaded.uncompiled_because}")
    if loaded.unconstrained_because:
        notes.append(f"holds no answer to a constraint: {loaded.unconstrained_because}")
    if loaded.drafting is not None:
        notes.append(_drafts(loaded.drafting))
    notes.append(_exact_note(loaded, wire, exact_because))
    return "; ".join(filter(None, notes))


def cpu_note(because: str) -> str:
    """What operators should know of a worker that leaves an accelerator unused."""
    return f"on the CPU, many times slower than it could be: {because}"


def cpu_line(because: str, mend: str) -> str:
    """What people are told of it at the worker."""
    return f"WARNING: {cpu_note(because)}. Mend it: {mend}"


def exact_line(because: str) -> str:
    """What people are told when states go exactly to a neighbour, though int8 was asked for."""
    return f"WARNING: --wire int8 does nothing towards a neighbour: {because}"


def hands_on(loaded: LoadedSpan) -> bool:
    """Whether another worker goes on where this span ends."""
    return loaded.key.blocks.end < loaded.n_blocks


def caches_of(loaded: LoadedSpan, kv_budget_bytes: int) -> str:
    """What keys and values are kept in, and for how many positions there is room.

    What keys may ask for isn't known here, so it is held against the longest session that the model can have.
    """
    room = _room(loaded, kv_budget_bytes)
    longest = f", of {loaded.context_length:,} that one can have" if room < loaded.context_length else ""
    if loaded.is_encoder:
        return f"an encoder, room for texts of {room:,} positions together{longest}"
    return f"caches in {loaded.kv_precision}, room for {room:,} positions{longest}"


def hardly_room(loaded: LoadedSpan, kv_budget_bytes: int) -> str:
    """That there is hardly room for one session, and what to do; empty if there is."""
    room = _room(loaded, kv_budget_bytes)
    if room >= min(_USUAL_ANSWER, loaded.context_length or _USUAL_ANSWER):
        return ""
    of = "of texts: hardly one fits" if loaded.is_encoder else "of prompt and answer: hardly a session fits"
    return (
        f"{kv_budget_bytes:,} bytes for caches are room for {room:,} positions {of}; start the worker with "
        "more --memory (or --kv-memory)"
    )


def _in_vain(loaded: LoadedSpan, wire: WireChoice, kv_budget_bytes: int) -> list[str]:
    lines = []
    if because := hardly_room(loaded, kv_budget_bytes):
        lines.append(because)
    if loaded.uncompiled_because:
        lines.append(f"--compile does nothing here: {loaded.uncompiled_because}")
    if loaded.drafting is not None and loaded.drafting.unfit_because:
        lines.append(f"--draft-model does nothing here: {loaded.drafting.unfit_because}")
    if because := _exact_because(loaded, wire):
        lines.append(f"--wire int8 does nothing here: {because}")
    return lines


def _drafts(drafting: Drafting) -> str:
    if drafting.unfit_because:
        return f"doesn't draft: {drafting.unfit_because}"
    said = f"drafts with {drafting.model} where that pays"
    if drafting.n_positions < drafting.context_length:
        said += f", up to position {drafting.n_positions:,} of {drafting.context_length:,}"
    return said


def _exact_note(loaded: LoadedSpan, wire: WireChoice, because_of_others: Iterable[str]) -> str:
    if because := _exact_because(loaded, wire):
        return f"sends hidden states as computed: {because}"
    because = "; ".join(because_of_others) if hands_on(loaded) else ""
    return because and f"sends some hidden states as computed: {because}"


def _exact_because(loaded: LoadedSpan, wire: WireChoice) -> str:
    return why_exact(wire, loaded.hidden_size) if hands_on(loaded) else ""


def _room(loaded: LoadedSpan, kv_budget_bytes: int) -> int:
    return kv_budget_bytes // loaded.kv_bytes_per_position(loaded.key.blocks, hands_on=loaded.is_encoder)
