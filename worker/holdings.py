"""What this worker was told to hold, what it holds, and what it says about it.

One owner changes it (the duties' loop); the data plane asks it which loaded span a session can use, and the uplink
waits for changes to report. Used on the event loop only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

import msgspec

from protocol.control_messages import Assign, SpanAssignment, SpanReport, SpanState, SpanStatus
from protocol.ids import BlockRange, FileHash, ModelName, Revision, WorkerId
from worker.ready_words import cpu_note, exact_line, hardly_room, note_of, ready_lines
from worker.steps import LoadedSpan, SpanKey
from worker.wire import WireChoice, why_exact_to

_MAX_EXACT_NEIGHBOURS = 8
"""Of those that are too old for what was asked, so many are named: the ones met last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldSpan:
    """A loaded span and the names that its model goes by. `is_retired`: no new session may use it."""

    models: tuple[ModelName, ...]
    loaded: LoadedSpan
    is_retired: bool = False


class Holdings:
    """Spans wanted and loaded, their states, and the files held."""

    def __init__(self, wire: WireChoice = "auto", *, on_cpu_because: str = "") -> None:
        """`wire`: how the operator wants hidden states to be handed on.

        `on_cpu_because`: why the machine's accelerator isn't used, if it has one that isn't.
        """
        self._wire = wire
        self._on_cpu = (cpu_note(on_cpu_because),) if on_cpu_because else ()
        self.epoch = 0
        """Of the assignment in force; 0 if there is none."""
        self.wanted: tuple[SpanAssignment, ...] = ()
        self.reason = "the coordinator has assigned no blocks yet"
        """Why the wanted spans are what they are, as the coordinator put it."""
        self.files: tuple[FileHash, ...] = ()
        """Model files that peers can have from here."""
        self._held: dict[SpanKey, HeldSpan] = {}
        self._statuses: dict[SpanAssignment, SpanStatus] = {}
        self._ready_as: dict[SpanAssignment, SpanKey] = {}
        self._exact_because: dict[WorkerId, str] = {}
        self._kv_budget_bytes: int | None = None
        self._unwanted: tuple[SpanAssignment, ...] = ()
        self._held_back = ""
        self._version = 0
        self._changed = asyncio.Event()

    def span_for(self, model: ModelName, revision: Revision, blocks: BlockRange) -> SpanKey | None:
        """The loaded span that a new session on these blocks uses: the smallest that contains them, or None."""
        fitting = [
            held.loaded.key
            for held in self._held.values()
            if not held.is_retired
            and model in held.models
            and held.loaded.key.revision == revision
            and held.loaded.key.blocks.contains(blocks)
        ]
        return min(fitting, key=lambda key: len(key.blocks), default=None)

    @property
    def held(self) -> tuple[HeldSpan, ...]:
        """Every loaded span."""
        return tuple(self._held.values())

    @property
    def statuses(self) -> tuple[SpanStatus, ...]:
        """What is to be reported of each wanted span, in the order of the assignment."""
        return tuple(self._statuses[span] for span in self.wanted)

    @property
    def leaving(self) -> tuple[SpanAssignment, ...]:
        """Spans that are wanted no longer, and that sessions may use all the same for now."""
        return tuple(span for span in self._unwanted if self._serves(span))

    @property
    def report(self) -> SpanReport:
        """What to tell the coordinator about the wanted spans."""
        return SpanReport(epoch=self.epoch, spans=self.statuses)

    @property
    def version(self) -> int:
        """Goes up with every change that the coordinator should hear of."""
        return self._version

    async def changed_since(self, version: int) -> int:
        """Wait until there is something newer than `version` to report; returns the new version."""
        while self._version <= version:
            await self._changed.wait()
        return self._version

    def assign(self, assignment: Assign) -> bool:
        """Take a new assignment; False (and nothing changes) if its epoch is stale."""
        if assignment.epoch <= self.epoch:
            return False
        unwanted = dict.fromkeys(span for span in (*self._unwanted, *self.wanted) if self._serves(span))
        self._unwanted = tuple(span for span in unwanted if span not in assignment.spans)
        self.epoch, self.wanted, self.reason = assignment.epoch, assignment.spans, assignment.reason
        kept = {span: status for span, status in self._statuses.items() if span in assignment.spans}
        for span in assignment.spans:
            kept.setdefault(span, self._assigned(span))
        self._statuses = kept
        self._ready_as = {span: key for span, key in self._ready_as.items() if span in kept}
        self._touch()
        return True

    def hold_back(self, reason: str) -> None:
        """Say of all that is wanted, and not begun, why it has to wait; empty: it hasn't any more."""
        self._held_back = reason
        self._statuses = {span: self._assigned(span) for span in self._statuses}
        self._touch()

    def _assigned(self, span: SpanAssignment) -> SpanStatus:
        if self._held_back:
            return _status(span, "loading", self._held_back)
        return _status(span, "downloading", "assigned just now; next: find out what is missing")

    def set_status(self, span: SpanAssignment, state: SpanState, reason: str, progress: float = 0.0) -> bool:
        """Set what is said of a wanted span; whether that changed anything (an unwanted span's doesn't)."""
        return self._set(span, _status(span, state, reason, progress))

    def set_ready(self, span: SpanAssignment, key: SpanKey) -> bool:
        """Say that a wanted span is loaded, as `key`; whether that is news."""
        by_block = self._held[key].loaded.kv_bytes_by_block
        is_uneven = len(set(by_block)) > 1
        self._ready_as[span] = key
        status = msgspec.structs.replace(
            _status(span, "ready", "", 1.0, self.note_of(key)), kv_bytes_by_block=by_block if is_uneven else ()
        )
        return self._set(span, status)

    def _set(self, span: SpanAssignment, status: SpanStatus) -> bool:
        if span not in self.wanted or self._statuses[span] == status:
            return False
        self._statuses[span] = status
        self._touch()
        return True

    def set_files(self, files: Iterable[FileHash]) -> None:
        """Say which files peers can have from here."""
        new = tuple(sorted(set(files)))
        if new != self.files:
            self.files = new
            self._touch()

    def add(self, model: ModelName, loaded: LoadedSpan) -> None:
        """A span is loaded: sessions may use it from now on."""
        self._held[loaded.key] = HeldSpan(models=(model,), loaded=loaded)

    def add_name(self, key: SpanKey, model: ModelName) -> None:
        """The span is a part of a model of this name too (the same revision)."""
        held = self._held[key]
        if model not in held.models:
            self._held[key] = replace(held, models=(*held.models, model))

    def note_of(self, key: SpanKey) -> str:
        """What operators should know of a span that is held; mostly nothing."""
        loaded, n_bytes = self._held[key].loaded, self._kv_budget_bytes
        little = "" if n_bytes is None else hardly_room(loaded, n_bytes)
        words = note_of(loaded, self._wire, self._exact_because.values())
        return "; ".join(filter(None, (*self._on_cpu, little, words)))

    def set_kv_budget(self, n_bytes: int) -> None:
        """Say of spans from now on what it means for them that the caches of all sessions may take so much."""
        self._kv_budget_bytes = n_bytes
        self._say_notes_again()

    def neighbour_met(self, worker_id: WorkerId, version: str) -> str:
        """A worker that states go to speaks so; the line to tell people if int8 is asked for and can't be, once."""
        because = why_exact_to(self._wire, worker_id, version)
        if because == self._exact_because.get(worker_id, ""):
            return ""
        self._exact_because.pop(worker_id, None)
        if because:
            self._exact_because[worker_id] = because
        for stale in list(self._exact_because)[:-_MAX_EXACT_NEIGHBOURS]:
            del self._exact_because[stale]
        self._say_notes_again()
        return exact_line(because) if because else ""

    def _say_notes_again(self) -> None:
        for span, key in self._ready_as.items():
            if key in self._held and span in self.wanted and self._statuses[span].state == "ready":
                self.set_ready(span, key)

    def ready_lines(self, span: SpanAssignment, key: SpanKey, device: str, kv_budget_bytes: int) -> list[str]:
        """What is told once a wanted span can be used, and which options do nothing for it."""
        loaded = self._held[key].loaded
        return ready_lines(span, loaded, device=device, wire=self._wire, kv_budget_bytes=kv_budget_bytes)

    def longest_sessions(self, kv_budget_bytes: int) -> dict[ModelName, int]:
        """Positions that one session of each model can have here; nothing while spans are loaded, which passes."""
        found: dict[ModelName, int] = {}
        if any(status.state != "ready" for status in self.statuses):
            return found
        for held in self._held.values():
            if not held.is_retired and not held.loaded.is_encoder:
                room = kv_budget_bytes // max(1, held.loaded.kv_bytes_per_position(held.loaded.key.blocks))
                found |= {model: max(room, found.get(model, 0)) for model in held.models}
        return found

    def retire(self, key: SpanKey) -> None:
        """Let no new session use the span; those that run go on."""
        self._held[key] = replace(self._held[key], is_retired=True)

    def restore(self, key: SpanKey) -> None:
        """Let new sessions use a retired span again: it is wanted once more."""
        self._held[key] = replace(self._held[key], is_retired=False)

    def remove(self, key: SpanKey) -> None:
        """The span is no longer loaded."""
        self._held.pop(key, None)

    def _serves(self, span: SpanAssignment) -> bool:
        return self.span_for(span.model, span.revision, span.blocks) is not None

    def _touch(self) -> None:
        self._version += 1
        self._changed.set()
        self._changed = asyncio.Event()


def _status(
    span: SpanAssignment, state: SpanState, reason: str, progress: float = 0.0, note: str = ""
) -> SpanStatus:
    return SpanStatus(
        model=span.model,
        revision=span.revision,
        blocks=span.blocks,
        state=state,
        reason=reason,
        progress=progress,
        note=note,
        quantization=span.quantization,
    )
